"""Takes a request from its arrival to its worker thread: the queue, the model, the turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from time import monotonic, perf_counter
from typing import TypeVar

import anyio

from edgesdk.server.answers import AnswerSource, RunningAnswer, contained_error
from edgesdk.server.api_errors import ApiError, deadline_passed, queue_full, shutting_down
from edgesdk.server.metrics import Metrics
from edgesdk.server.model_pool import LoadedModel, ModelPool, PoolEntry
from edgesdk.server.model_source import ModelSource
from edgesdk.server.settings import ServerSettings
from edgesdk.system.forks import ForkGuard

_Result = TypeVar("_Result")
_EXTRA_THREADS = 4
_IDLE_CHECK_SECONDS = 5.0
_MAX_RETRY_SECONDS = 60.0


class Service:
    """Answers requests with the models of a source. All of it is for one event loop."""

    def __init__(self, source: ModelSource, settings: ServerSettings) -> None:
        self.settings = settings
        self.source = source
        self.metrics = Metrics()
        self.queue = AdmissionQueue(settings.queue)
        self._executor = ThreadPoolExecutor(
            settings.parallel * settings.max_models + _EXTRA_THREADS, "edgesdk-serve"
        )
        self._pool = ModelPool(source, settings, self._executor)
        self._waiting: set[anyio.CancelScope] = set()
        self._running: set[RunningAnswer] = set()
        # Made by the first use: a server may fork before it, as those do that load an app first.
        self._fork_guard: ForkGuard | None = None
        self._show_gauges()

    async def start(
        self,
        model: str,
        started: float,
        prepare: Callable[[LoadedModel], AnswerSource],
        *,
        keep_alive: float | None = None,
    ) -> RunningAnswer:
        """Start an answer when its turn has come.

        Args:
            started: `time.perf_counter()` when the request came.
            prepare: what can be done before that; runs in a worker thread.
            keep_alive: see `ModelPool.enter`.

        Raises:
            ApiError: the queue is full, the deadline passed, the server is shutting down, or the
                model is unknown or cannot be loaded; or this process is a fork of one that served.
            EdgeError: `prepare` raised it.
        """
        self._refuse_forks()
        with ExitStack() as held:
            waiting = held.enter_context(ExitStack())
            waiting.enter_context(self.queue.wait())
            left = self.settings.deadline - (perf_counter() - started)
            with anyio.move_on_after(left) as scope:
                self._waiting.add(scope)
                try:
                    entry = await self._pool.enter(model, keep_alive)
                    held.callback(self._pool.leave, entry)
                    loaded, source = await self._wait_for_turn(entry, prepare, waiting, held)
                finally:
                    self._waiting.discard(scope)
            if scope.cancelled_caught:
                raise shutting_down() if self.queue.closed else deadline_passed()
            self.queue.check_open()
            return self._run(RunningAnswer(loaded, source), held)

    async def use(
        self,
        model: str,
        work: Callable[[LoadedModel], _Result],
        *,
        keep_alive: float | None = None,
    ) -> _Result:
        """Run something short with a model, loaded or not, in a worker thread; it needs no turn.

        Args:
            keep_alive: see `ModelPool.enter`.

        Raises:
            ApiError: the server is shutting down, or the model is unknown or cannot be loaded.
        """
        self.queue.check_open()
        entry = await self._pool.enter(model, keep_alive)
        try:
            loaded = await asyncio.shield(entry.loading)
            return await self.in_thread(lambda: work(loaded))
        finally:
            self._pool.leave(entry)

    def loaded_models(self) -> list[LoadedModel]:
        """The models that are in memory."""
        return self._pool.loaded_models()

    async def compute(self, model: str, work: Callable[[LoadedModel], _Result]) -> _Result:
        """Run something with a model in a worker thread when its turn has come.

        Raises:
            ApiError: as `start`.
            EdgeError: `work` raised it.
        """
        self._refuse_forks()
        with ExitStack() as held:
            waiting = held.enter_context(ExitStack())
            waiting.enter_context(self.queue.wait())
            entry = await self._pool.enter(model)
            held.callback(self._pool.leave, entry)
            loaded = await asyncio.shield(entry.loading)
            await loaded.answer_slots.acquire()
            held.callback(loaded.answer_slots.release)
            waiting.close()
            held.enter_context(self.queue.run())
            return await self.in_thread(lambda: work(loaded))

    def is_loaded(self, model: str) -> bool:
        """Whether a model is in memory."""
        return self._pool.is_loaded(model)

    async def in_thread(self, work: Callable[[], _Result]) -> _Result:
        """Run something that blocks.

        Raises:
            ApiError: this process is a fork of one that served, and has none of its threads.
        """
        self._refuse_forks()

        def contained() -> _Result:
            try:
                return work()
            except BaseException as error:
                raise contained_error(error) from None

        return await asyncio.get_running_loop().run_in_executor(self._executor, contained)

    async def keep_evicting(self) -> None:
        """Unload idle models, for ever."""
        while True:
            await asyncio.sleep(min(_IDLE_CHECK_SECONDS, self.settings.idle_seconds or 1.0))
            await self._pool.evict_idle()

    async def drain(self) -> None:
        """Take no more requests; return when all answers have ended.

        Those that wait are sent away, those that run get `grace` seconds.
        """
        self.queue.closed = True
        for scope in self._waiting:
            scope.cancel()
        with anyio.move_on_after(self.settings.grace):
            await self._wait_until_idle()
        for answer in self._running:
            answer.cancel()
        await self._wait_until_idle()

    async def close(self) -> None:
        """Drain, and free the models."""
        await self.drain()
        await self._pool.close()
        self._executor.shutdown()

    def _refuse_forks(self) -> None:
        if self._fork_guard is None:
            self._fork_guard = ForkGuard("The server")
        if self._fork_guard.crossed:
            raise ApiError(
                503,
                "This process was forked from a server that had answered, whose models it cannot"
                " use. Fork servers before their first request, or start them by 'spawn'.",
            )

    async def _wait_for_turn(
        self,
        entry: PoolEntry,
        prepare: Callable[[LoadedModel], AnswerSource],
        waiting: ExitStack,
        held: ExitStack,
    ) -> tuple[LoadedModel, AnswerSource]:
        # The model stays, and others may wait for it, when this request is given up.
        loaded = await asyncio.shield(entry.loading)
        source = await self.in_thread(lambda: prepare(loaded))
        await loaded.answer_slots.acquire()
        held.callback(loaded.answer_slots.release)
        waiting.close()
        held.enter_context(self.queue.run())
        return loaded, source

    def _run(self, answer: RunningAnswer, held: ExitStack) -> RunningAnswer:
        computed = self._executor.submit(answer.compute)
        to_free = held.pop_all()
        self._running.add(answer)
        loop = asyncio.get_running_loop()

        def end() -> None:
            to_free.close()
            self._running.discard(answer)
            answer.end(self.metrics)

        computed.add_done_callback(lambda _: loop.call_soon_threadsafe(end))
        return answer

    async def _wait_until_idle(self) -> None:
        while self._running:
            await asyncio.sleep(0.02)

    def _show_gauges(self) -> None:
        gauge, loaded_models = self.metrics.gauge, self._pool.loaded_models
        gauge("edgesdk_requests_waiting", "Requests in the queue.", lambda: self.queue.waiting)
        gauge("edgesdk_requests_running", "Answers under way.", lambda: self.queue.running)
        gauge("edgesdk_models_loaded", "Models in memory.", lambda: len(loaded_models()))
        gauge(
            "edgesdk_model_bytes",
            "Bytes of the files of the loaded models.",
            lambda: sum(loaded.model_info.size for loaded in loaded_models()),
        )
        gauge(
            "edgesdk_model_memory_bytes",
            "Memory that the loaded models are reckoned to need, each with a full context.",
            lambda: sum(loaded.memory for loaded in loaded_models()),
        )
        gauge(
            "edgesdk_sequences_idle",
            "KV caches that are kept for a conversation's next turn.",
            lambda: sum(len(loaded.states) for loaded in loaded_models()),
        )


class AdmissionQueue:
    """Counts requests from their arrival to their end. For one event loop, not for threads.

    Args:
        limit: most requests that wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seconds = 1.0
        self.waiting = 0
        self.running = 0
        self.closed = False

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count a request that waits.

        Raises:
            ApiError: the queue is full (429), or the server is shutting down (503).
        """
        self.check_open()
        if self.waiting >= self._limit:
            ahead = self.waiting / max(1, self.running)
            raise queue_full(min(_MAX_RETRY_SECONDS, self._seconds * ahead))
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @contextmanager
    def run(self) -> Iterator[None]:
        """Count an answer under way, and learn from it when one that is turned away may come
        again."""
        self.running += 1
        started = monotonic()
        try:
            yield
        finally:
            self.running -= 1
            self._seconds += 0.2 * (monotonic() - started - self._seconds)

    def check_open(self) -> None:
        """Raise 503 if the server is shutting down."""
        if self.closed:
            raise shutting_down()
