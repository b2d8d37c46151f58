"""The loaded models: loaded when first asked for, unloaded when idle or to make room.

All of it runs on the event loop, so that no lock is needed; only loading and freeing themselves
run in worker threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

from edgesdk.errors import EdgeError
from edgesdk.model import Model
from edgesdk.server.failures import ApiError, not_loaded, unknown_model
from edgesdk.server.sequences import SequencePool
from edgesdk.server.settings import ServerSettings
from edgesdk.server.sources import ModelSource, Offer

_Result = TypeVar("_Result")
_log = logging.getLogger("edgesdk.server")


@dataclass(frozen=True)
class Resident:
    """A loaded model, the bytes that it is reckoned to take, its idle sequences, and the turns
    that its answers take, first come first served."""

    offer: Offer
    memory: int
    model: Model
    sequences: SequencePool
    turns: asyncio.Semaphore

    def close(self) -> None:
        """Free it."""
        self.sequences.close()
        self.model.close()


@dataclass(eq=False)
class Slot:
    """A place on the shelf, and the bytes that it is reckoned to take. `resident` is what is, or is
    being, loaded into it."""

    offer: Offer
    memory: int
    resident: asyncio.Task[Resident]
    used: float
    users: int = 0

    @property
    def is_loaded(self) -> bool:
        """Whether it has been loaded, and well."""
        task = self.resident
        return task.done() and not task.cancelled() and task.exception() is None


class Shelf:
    """Loads models and keeps them while they are in use.

    A request that must wait for room holds up those that come later, so that busy models cannot
    keep another one out for ever.

    Args:
        executor: where models are loaded and freed.
        clock: seconds, for the idle time.
    """

    def __init__(
        self,
        source: ModelSource,
        settings: ServerSettings,
        executor: Executor,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._source = source
        self._settings = settings
        self._executor = executor
        self._clock = clock
        self._slots: dict[str, Slot] = {}
        self._gate = asyncio.Lock()
        self._changed = asyncio.Event()

    async def enter(self, name: str) -> Slot:
        """Take a model into use, loaded or loading; `leave` ends the use.

        Raises:
            ApiError: there is no such model (404), or it is too large for this server, or cannot
                be opened (503).
        """
        offer = await self._thread(lambda: self._source.find(name))
        if offer is None:
            raise unknown_model(name)
        async with self._gate:
            slot = self._slots.get(name)
            if slot is None:
                memory = await self._memory(offer)
                await self._make_room(offer, memory)
                task = asyncio.get_running_loop().create_task(self._load(offer, memory))
                slot = self._slots[name] = Slot(offer, memory, task, self._clock())
                task.add_done_callback(lambda _: self._loaded(name, slot))
            slot.users += 1
            return slot

    def leave(self, slot: Slot) -> None:
        """End one use of a model."""
        slot.users -= 1
        slot.used = self._clock()
        self._changed.set()

    def residents(self) -> list[Resident]:
        """The models that are loaded."""
        return [slot.resident.result() for slot in self._slots.values() if slot.is_loaded]

    async def evict_idle(self) -> None:
        """Unload what nobody used for `idle_seconds`."""
        oldest = self._clock() - self._settings.idle_seconds
        async with self._gate:
            for slot in self._evictable():
                if slot.used <= oldest:
                    await self._evict(slot)

    async def close(self) -> None:
        """Unload everything; no model may be in use any more."""
        async with self._gate:
            if self._slots:
                await asyncio.wait([slot.resident for slot in self._slots.values()])
            for slot in self._evictable():
                await self._evict(slot)

    async def _memory(self, offer: Offer) -> int:
        try:
            return await self._thread(lambda: self._source.memory(offer.name))
        except EdgeError as error:
            raise not_loaded(offer.name, error) from error

    async def _load(self, offer: Offer, memory: int) -> Resident:
        settings = self._settings
        try:
            model = await self._thread(lambda: self._source.load(offer.name))
        except EdgeError as error:
            _log.warning("%s cannot be loaded: %s", offer.name, error)
            raise not_loaded(offer.name, error) from error
        pool = SequencePool(model.runtime.engine, settings.kept_sequences)
        return Resident(offer, memory, model, pool, asyncio.Semaphore(settings.parallel))

    def _loaded(self, name: str, slot: Slot) -> None:
        # Also marks the exception as seen: those who asked may all have gone.
        if not slot.is_loaded and self._slots.get(name) is slot:
            del self._slots[name]
        self._changed.set()

    async def _make_room(self, offer: Offer, memory: int) -> None:
        limit = self._settings.memory_limit
        if limit is not None and memory > limit:
            raise ApiError(
                503,
                f"The model {offer.name!r} needs {memory:,} bytes with a full context; this server"
                f" may use {limit:,}. Its --context makes that less, its --memory allows more.",
                code="model_too_large",
                param="model",
            )
        while self._is_full(memory):
            candidates = self._evictable()
            if candidates:
                await self._evict(min(candidates, key=lambda slot: slot.used))
            else:
                self._changed.clear()
                await self._changed.wait()

    def _is_full(self, memory: int) -> bool:
        limit = self._settings.memory_limit
        taken = sum(slot.memory for slot in self._slots.values())
        over = limit is not None and taken + memory > limit
        return over or len(self._slots) >= self._settings.max_models

    def _evictable(self) -> list[Slot]:
        return [s for s in self._slots.values() if s.users == 0 and s.is_loaded]

    async def _evict(self, slot: Slot) -> None:
        del self._slots[slot.offer.name]
        resident = slot.resident.result()
        # Who makes room may give up, and the model is to be freed all the same.
        await asyncio.shield(self._thread(resident.close))
        self._changed.set()

    def _thread(self, work: Callable[[], _Result]) -> asyncio.Future[_Result]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work)
