"""Finds models, loads them when first asked for, and unloads them when idle or to make room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from edgesdk.bundle.opening import Bundle
from edgesdk.embedding.embedder import Embedder
from edgesdk.embedding.loading import load_embedder, load_reranker
from edgesdk.embedding.reranker import Reranker
from edgesdk.engines.registry import footprint
from edgesdk.errors import EdgeError, InvalidOption
from edgesdk.loading import find, load
from edgesdk.model import Model
from edgesdk.server.api_errors import ApiError, model_not_loaded
from edgesdk.server.model_source import AnyModel, ModelInfo, ModelSource, find_model
from edgesdk.server.settings import ServerSettings
from edgesdk.server.state_pool import StatePool
from edgesdk.store import Store, StoreEntry
from edgesdk.store.reference import is_model_name
from edgesdk.system.gguf_header import read_gguf_header
from edgesdk.warm_start import STAND_IN, may_be_cold


class StoreModels:
    """Implements `ModelSource` with the store's runnable models and those named at the start.

    Args:
        named: bundle folders, `.gguf` files or names, as `edgesdk.load` takes them. They come
            before models of the store that have the same name.
        device, allow_fallback, context, threads, warm_start, batch_invariant: as for
            `edgesdk.load`.
        conversations: that a model has in memory at once; `memory` counts as many KV caches.

    Raises:
        InvalidOption: two of `named` have the same name.
        UnknownModel, BundleError: one of them cannot be found or opened.
    """

    def __init__(
        self,
        named: Sequence[str] = (),
        *,
        store: Store | None = None,
        device: str = "auto",
        allow_fallback: bool = False,
        context: int | None = None,
        threads: int | None = None,
        warm_start: bool = False,
        batch_invariant: bool = True,
        conversations: int = 1,
    ) -> None:
        self._store = store or Store()
        self._device = device
        self._context = context
        self._threads = threads
        self._warm_start = warm_start
        self._more_conversations = conversations - 1
        self._load = partial(
            load,
            device=device,
            allow_fallback=allow_fallback,
            context=context,
            threads=threads,
            warm_start=warm_start,
            batch_invariant=batch_invariant,
        )
        # Reading a model's header takes a while.
        self._known: dict[Path, ModelInfo] = {}
        self._named: dict[str, tuple[str | Path, ModelInfo]] = {}
        for what in named:
            source = find(what)
            info = replace(_source_info(source), named=True, **self._abilities(source))
            if isinstance(source, Path) and is_model_name(what) and not Path(what).exists():
                # One of the store, whose file has another name.
                info = replace(info, name=what)
            if info.name in self._named:
                raise InvalidOption(
                    f"Two models are called {info.name!r}.", hint="Serve one of them elsewhere."
                )
            self._named[info.name] = (what, info)

    def list_models(self) -> list[ModelInfo]:
        stored = (self._stored_info(entry) for entry in self._store.list())
        found = {info.name: info for info in stored if info is not None}
        found |= {name: info for name, (_, info) in self._named.items()}
        return sorted(found.values(), key=lambda info: info.name)

    def find(self, name: str) -> ModelInfo | None:
        if name in self._named:
            return self._named[name][1]
        entry = self._store.find(name) if is_model_name(name) else None
        return None if entry is None else self._stored_info(entry)

    def memory(self, name: str) -> int:
        source = find(self.place(name))
        devices = [self._device]
        if self._warm_start and may_be_cold(source, self._device):
            # It has the model until its last answer is over.
            devices.append(STAND_IN)
        total = 0
        for device in devices:
            found = footprint(source, device)
            need = found.need(min(self._context or found.context_length, found.context_length))
            # The server's own process is there whichever model it loads.
            total += need.total - need.process
            total += self._more_conversations * (need.kv_cache + need.scratch)
        return total

    def load(self, name: str, adapter: Path | None = None) -> AnyModel:
        """Load a model, with an adapter or without; adapters are not warm-started."""
        if adapter is None:
            place = self.place(name)
            source = find(place)
            if isinstance(source, Bundle) and source.manifest.embedding is not None:
                return load_embedder(place, device=self._device, threads=self._threads)
            if isinstance(source, Bundle) and source.manifest.reranking is not None:
                return load_reranker(place, device=self._device, threads=self._threads)
            return self._load(place)
        return self._load(self.place(name), adapter=adapter, warm_start=False)

    def place(self, name: str) -> str | Path:
        """What `edgesdk.load` takes for the model of that name."""
        return self._named[name][0] if name in self._named else self._store.get(name).path

    def _stored_info(self, entry: StoreEntry) -> ModelInfo | None:
        """None where the model is damaged, or is a checkpoint that must be exported first."""
        runnable = entry.kind == "bundle" or entry.path.suffix.lower() == ".gguf"
        if entry.problem is not None or not runnable:
            return None
        written = int(entry.path.stat().st_mtime)
        known = self._known.get(entry.path)
        if known is None or known.created != written:
            info = ModelInfo(entry.name, entry.size, written)
            with suppress(EdgeError, OSError):
                info = replace(info, **self._abilities(find(entry.path)))
            self._known[entry.path] = known = info
        return known

    def _abilities(self, source: Bundle | Path) -> dict[str, Any]:
        """What a model's files say of what it can do."""
        length = footprint(source, self._device).context_length
        template = _template_source(source)
        abilities = ["completion"]
        abilities += [] if template is None else ["chat"]
        abilities += ["tools"] if template is not None and "tools" in template else []
        if isinstance(source, Bundle) and source.manifest.embedding is not None:
            length, abilities = source.manifest.embedding.max_tokens, ["embedding"]
        if isinstance(source, Bundle) and source.manifest.reranking is not None:
            length, abilities = source.manifest.reranking.max_tokens, ["rerank"]
        return {
            "context_length": min(self._context or length, length),
            "capabilities": tuple(abilities),
        }


def _template_source(source: Bundle | Path) -> str | None:
    """The Jinja text of a model's chat template; None where it has none."""
    if isinstance(source, Path):
        template = read_gguf_header(source).metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None
    name = source.manifest.tokenizer.chat_template
    return None if name is None else source.file(name).read_text(encoding="utf-8")


def _source_info(source: Bundle | Path) -> ModelInfo:
    if isinstance(source, Bundle):
        written = source.file(next(iter(source.manifest.roles.values()))).stat()
        return ModelInfo(source.manifest.name, source.size, int(written.st_mtime))
    return ModelInfo(source.stem, source.stat().st_size, int(source.stat().st_mtime))


_Result = TypeVar("_Result")
_Kind = TypeVar("_Kind", Model, Embedder, Reranker)
_log = logging.getLogger("edgesdk.server")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        memory: the bytes that it is reckoned to take.
        content: the model itself, which answers prompts, makes vectors or scores.
        states: its idle decode states.
        answer_slots: lets so many answers run at once, first come first served.
    """

    model_info: ModelInfo
    memory: int
    content: AnyModel
    states: StatePool
    answer_slots: asyncio.Semaphore

    @property
    def model(self) -> Model:
        """The model that answers prompts; raises ApiError where it is none."""
        return self._require(Model, "answers no prompts")

    @property
    def embedder(self) -> Embedder:
        """The model that makes vectors; raises ApiError where it is none."""
        return self._require(Embedder, "makes no vectors of texts")

    @property
    def reranker(self) -> Reranker:
        """The model that scores documents; raises ApiError where it is none."""
        return self._require(Reranker, "scores no documents")

    def close(self) -> None:
        """Free it."""
        self.states.close()
        self.content.close()

    def _require(self, kind: type[_Kind], lacks: str) -> _Kind:
        if isinstance(self.content, kind):
            return self.content
        raise ApiError(
            400,
            f"The model {self.model_info.name!r} {lacks}; /v1/models lists what each can do.",
            code="model_not_supported",
            param="model",
        )


@dataclass(eq=False)
class PoolEntry:
    """A model that is loaded, or being loaded.

    Attributes:
        memory: the bytes that it is reckoned to take.
        used: when it was last in use, by the pool's clock.
        users: how many requests use it now.
        keep_alive: seconds without use after which it is unloaded, below 0 for never; None for
            what the settings say.
    """

    model_info: ModelInfo
    memory: int
    loading: asyncio.Task[LoadedModel]
    used: float
    users: int = 0
    keep_alive: float | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether loading it has succeeded."""
        task = self.loading
        return task.done() and not task.cancelled() and task.exception() is None


class ModelPool:
    """Loads models and keeps them while they are in use.

    All of it runs on the event loop, so it needs no lock; only loading and freeing run in worker
    threads. A request that must wait for room holds up those that come later, so that busy models
    cannot keep another one out for ever.

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
        self._entries: dict[str, PoolEntry] = {}
        self._gate = asyncio.Lock()
        self._changed = asyncio.Event()

    async def enter(self, name: str, keep_alive: float | None = None) -> PoolEntry:
        """Start to use a model, which may still be loading; `leave` ends the use.

        Args:
            name: as a client says it; see `find_model`.
            keep_alive: seconds that it stays loaded afterwards; None for what was said before.

        Raises:
            ApiError: there is no such model (404), or it is too large for this server or cannot be
                opened (503).
        """
        model_info = await self._thread(lambda: find_model(self._source, name))
        name = model_info.name
        async with self._gate:
            entry = self._entries.get(name)
            if entry is None:
                memory = await self._memory(model_info)
                await self._make_room(model_info, memory)
                task = asyncio.get_running_loop().create_task(self._load(model_info, memory))
                entry = self._entries[name] = PoolEntry(model_info, memory, task, self._clock())
                task.add_done_callback(lambda _: self._loaded(name, entry))
            entry.users += 1
            entry.keep_alive = entry.keep_alive if keep_alive is None else keep_alive
            return entry

    def leave(self, entry: PoolEntry) -> None:
        """End one use of a model."""
        entry.users -= 1
        entry.used = self._clock()
        self._changed.set()

    def loaded_models(self) -> list[LoadedModel]:
        """The models that are loaded."""
        return [entry.loading.result() for entry in self._entries.values() if entry.is_loaded]

    def is_loaded(self, name: str) -> bool:
        """Whether the model of that name is loaded."""
        return name in self._entries and self._entries[name].is_loaded

    async def evict_idle(self) -> None:
        """Unload models that nobody used for `idle_seconds`, or as long as was asked for."""
        async with self._gate:
            for entry in self._evictable():
                usual = self._settings.idle_seconds
                most = usual if entry.keep_alive is None else entry.keep_alive
                if 0 <= most <= self._clock() - entry.used:
                    await self._evict(entry)

    async def close(self) -> None:
        """Unload everything; no model may be in use any more."""
        async with self._gate:
            if self._entries:
                await asyncio.wait([entry.loading for entry in self._entries.values()])
            for entry in self._evictable():
                await self._evict(entry)

    async def _memory(self, model_info: ModelInfo) -> int:
        try:
            return await self._thread(lambda: self._source.memory(model_info.name))
        except EdgeError as error:
            raise model_not_loaded(model_info.name, error) from error

    async def _load(self, model_info: ModelInfo, memory: int) -> LoadedModel:
        settings = self._settings
        try:
            model = await self._thread(lambda: self._source.load(model_info.name))
        except EdgeError as error:
            _log.warning("%s cannot be loaded: %s", model_info.name, error)
            raise model_not_loaded(model_info.name, error) from error
        pool = StatePool(settings.max_idle_states)
        return LoadedModel(model_info, memory, model, pool, asyncio.Semaphore(settings.parallel))

    def _loaded(self, name: str, entry: PoolEntry) -> None:
        # This also marks the exception as seen: all who asked may have gone.
        if not entry.is_loaded and self._entries.get(name) is entry:
            del self._entries[name]
        self._changed.set()

    async def _make_room(self, model_info: ModelInfo, memory: int) -> None:
        limit = self._settings.memory_limit
        if limit is not None and memory > limit:
            raise ApiError(
                503,
                f"The model {model_info.name!r} needs {memory:,} bytes when all its conversations"
                f" are full; this server may use {limit:,}. Its --context and --parallel make that"
                " less, its --memory allows more.",
                code="model_too_large",
                param="model",
            )
        while self._is_full(memory):
            candidates = self._evictable()
            if candidates:
                await self._evict(min(candidates, key=lambda entry: entry.used))
            else:
                self._changed.clear()
                await self._changed.wait()

    def _is_full(self, memory: int) -> bool:
        limit = self._settings.memory_limit
        taken = sum(entry.memory for entry in self._entries.values())
        over = limit is not None and taken + memory > limit
        return over or len(self._entries) >= self._settings.max_models

    def _evictable(self) -> list[PoolEntry]:
        return [e for e in self._entries.values() if e.users == 0 and e.is_loaded]

    async def _evict(self, entry: PoolEntry) -> None:
        del self._entries[entry.model_info.name]
        loaded = entry.loading.result()
        # The request that needs room may give up; the model is freed all the same.
        await asyncio.shield(self._thread(loaded.close))
        self._changed.set()

    def _thread(self, work: Callable[[], _Result]) -> asyncio.Future[_Result]:
        return asyncio.get_running_loop().run_in_executor(self._executor, work)
