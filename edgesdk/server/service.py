"""One answer from its request to its last token: queue, model, turn, worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, TypeVar

import anyio

from edgesdk.generation.constraint import Constraint
from edgesdk.generation.loop import Finish, Step, check_fits
from edgesdk.options import Options
from edgesdk.runtime import Runtime
from edgesdk.server.admission import Admission, AdmissionQueue
from edgesdk.server.api_errors import deadline_passed, shutting_down
from edgesdk.server.metrics import Metrics
from edgesdk.server.model_pool import LoadedModel, ModelPool
from edgesdk.server.model_sources import ModelSource
from edgesdk.server.settings import ServerSettings

_Result = TypeVar("_Result")
_Prepared = TypeVar("_Prepared")
_SPARE_THREADS = 4
_IDLE_CHECK_SECONDS = 5.0


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt for one model: its ids, and what holds the answer to a form."""

    ids: list[int]
    constraint: Constraint | None = None


@dataclass(frozen=True)
class DeviceJob:
    """What is to be answered.

    Attributes:
        prepare: makes the prompt for a model; runs in a worker thread.
        started: `time.perf_counter()` when the request came.
    """

    model: str
    prepare: Callable[[Runtime], PreparedPrompt]
    options: Options
    started: float
    logprobs: bool = False
    top_logprobs: int = 0


def contained_error(error: BaseException) -> Exception:
    """What a worker thread may hand to the event loop.

    A panic in a library written in Rust is no `Exception`, and would end the loop.
    """
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


class WorkerTask(Protocol):
    """An answer that a worker thread makes.

    Whoever asked for it cancels it when it is no longer wanted. What it holds (its model, its turn)
    is freed by the worker's end and by nothing else.
    """

    def compute(self) -> None:
        """Make it; for a worker thread. Raises nothing."""

    def cancel(self) -> None:
        """End it soon."""

    def over(self, metrics: Metrics) -> None:
        """It is over: count it, and tell whoever waits."""


_Work = TypeVar("_Work", bound=WorkerTask)


class DeviceAnswer:
    """Implements `WorkerTask`: an answer of the device's model."""

    def __init__(self, loaded: LoadedModel, job: DeviceJob, prepared: PreparedPrompt) -> None:
        self.loaded = loaded
        self.finish: Finish | None = None
        self.error: Exception | None = None
        self._job = job
        self._prepared = prepared
        self._cancel = loaded.model.runtime.cancel_event()
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Step | None] = asyncio.Queue()

    def cancel(self) -> None:
        """End it before its next token."""
        self._cancel.set()

    async def steps(self) -> AsyncGenerator[Step, None]:
        """The steps as they come; may be iterated once. Raises what the worker did."""
        while (step := await self._arrived.get()) is not None:
            yield step
        if self.error is not None:
            raise self.error

    def compute(self) -> None:
        """Decode; for a worker thread."""
        pool, job, ids = self.loaded.sequences, self._job, self._prepared.ids
        try:
            state = pool.take(ids)
            try:
                generation = self.loaded.model.runtime.generate(
                    state,
                    ids,
                    job.options,
                    cancel=self._cancel,
                    started=job.started,
                    logprobs=job.logprobs,
                    top_logprobs=job.top_logprobs,
                    constraint=self._prepared.constraint,
                )
                for step in generation:
                    self._loop.call_soon_threadsafe(self._arrived.put_nowait, step)
            except BaseException:
                # After an error nothing is known of the cache for sure.
                state.close()
                raise
            pool.release(state)
            self.finish = generation.finish
        except BaseException as error:
            self.error = contained_error(error)

    def over(self, metrics: Metrics) -> None:
        name = self.loaded.model_info.name
        if self.finish is None:
            metrics.count_failure(name)
        else:
            metrics.count_answer(name, self.finish)
        self._arrived.put_nowait(None)


class Service:
    """Answers jobs with the models of a source. Everything but `compute` is for one event loop."""

    def __init__(self, source: ModelSource, settings: ServerSettings) -> None:
        self.settings = settings
        self.source = source
        self.metrics = Metrics()
        self.admissions = AdmissionQueue(settings.queue)
        self._executor = ThreadPoolExecutor(
            settings.parallel * settings.max_models + _SPARE_THREADS, "edgesdk-serve"
        )
        self.shelf = ModelPool(source, settings, self._executor)
        self._waiting: set[anyio.CancelScope] = set()
        self._running: set[WorkerTask] = set()
        self._show_gauges()

    async def answer(self, job: DeviceJob) -> DeviceAnswer:
        """Start an answer when its turn has come.

        Raises:
            ApiError: the queue is full, the deadline passed, the server is shutting down, or the
                model is unknown or cannot be loaded.
            EdgeError: the prompt cannot be encoded or does not fit, or no answer has its form.
        """

        def prepare(loaded: LoadedModel) -> PreparedPrompt:
            prepared = job.prepare(loaded.model.runtime)
            check_fits(len(prepared.ids), loaded.model.info.context_length)
            return prepared

        return await self.begin(
            job.model,
            job.started,
            prepare,
            lambda loaded, prepared: DeviceAnswer(loaded, job, prepared),
        )

    async def begin(
        self,
        model: str,
        started: float,
        prepare: Callable[[LoadedModel], _Prepared],
        make: Callable[[LoadedModel, _Prepared], _Work],
    ) -> _Work:
        """Start some work when its turn has come.

        Args:
            started: `time.perf_counter()` when the request came.
            prepare: what can be done before that; runs in a worker thread.
            make: the work.

        Raises:
            ApiError: see `answer`.
            EdgeError: `prepare` raised it.
        """
        with ExitStack() as held:
            admission = self.admissions.enter()
            held.callback(admission.leave)
            left = self.settings.deadline - (perf_counter() - started)
            with anyio.move_on_after(left) as scope:
                self._waiting.add(scope)
                try:
                    loaded, prepared = await self._wait_for_turn(model, prepare, admission, held)
                finally:
                    self._waiting.discard(scope)
            if scope.cancelled_caught:
                raise shutting_down() if self.admissions.closed else deadline_passed()
            self.admissions.check_open()
            return self._start(make(loaded, prepared), held)

    async def in_thread(self, work: Callable[[], _Result]) -> _Result:
        """Run something that blocks."""

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
            await self.shelf.evict_idle()

    async def drain(self) -> None:
        """Take no more requests; return when all answers have ended.

        Those that wait are sent away, those that run get `grace` seconds.
        """
        self.admissions.closed = True
        for scope in self._waiting:
            scope.cancel()
        with anyio.move_on_after(self.settings.grace):
            await self._wait_until_idle()
        for work in self._running:
            work.cancel()
        await self._wait_until_idle()

    async def close(self) -> None:
        """Drain, and free the models."""
        await self.drain()
        await self.shelf.close()
        self._executor.shutdown()

    async def _wait_for_turn(
        self,
        model: str,
        prepare: Callable[[LoadedModel], _Prepared],
        admission: Admission,
        held: ExitStack,
    ) -> tuple[LoadedModel, _Prepared]:
        entry = await self.shelf.enter(model)
        held.callback(self.shelf.leave, entry)
        # The model stays, and others may wait for it, when this request is given up.
        loaded = await asyncio.shield(entry.loaded)
        prepared = await self.in_thread(lambda: prepare(loaded))
        await loaded.answer_slots.acquire()
        held.callback(loaded.answer_slots.release)
        admission.start()
        return loaded, prepared

    def _start(self, work: _Work, held: ExitStack) -> _Work:
        computed = self._executor.submit(work.compute)
        holdings = held.pop_all()
        self._running.add(work)
        loop = asyncio.get_running_loop()

        def over() -> None:
            holdings.close()
            self._running.discard(work)
            work.over(self.metrics)

        computed.add_done_callback(lambda _: loop.call_soon_threadsafe(over))
        return work

    async def _wait_until_idle(self) -> None:
        while self._running:
            await asyncio.sleep(0.02)

    def _show_gauges(self) -> None:
        gauge, loaded_models = self.metrics.gauge, self.shelf.loaded_models
        gauge("edgesdk_requests_waiting", "Requests in the queue.", lambda: self.admissions.waiting)
        gauge("edgesdk_requests_running", "Answers under way.", lambda: self.admissions.running)
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
            lambda: sum(len(loaded.sequences) for loaded in loaded_models()),
        )
