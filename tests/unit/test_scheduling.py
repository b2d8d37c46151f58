"""Taking turns at an engine: who goes first, and who may give up."""

from __future__ import annotations

import os
import threading

import pytest

from edgesdk.errors import DeadlineExceeded, EngineError, InvalidOption
from edgesdk.generation.scheduling import ADMISSIONS_PER_PRIORITY, EngineScheduler
from edgesdk.model import Model
from edgesdk.system.cancellation import CancellationToken, Cancelled
from tests.support.fake_engine import FakeDecodeState, FakeEngine, fake_model
from tests.support.waiting import until


class Callers:
    """Threads that take turns; each stays inside until it is told to go."""

    def __init__(self, scheduler: EngineScheduler) -> None:
        self.scheduler = scheduler
        self.order: list[str] = []
        self.interrupted: list[str] = []
        self._go = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def arrive(
        self, name: str, priority: int = 0, cancellation: CancellationToken | None = None
    ) -> None:
        """A new caller; it waits when this returns."""
        waiting = self.scheduler.waiting

        def run() -> None:
            try:
                self.scheduler.acquire(priority, cancellation)
            except Cancelled:
                self.interrupted.append(name)
                return
            self.order.append(name)
            self._go.acquire()
            self.scheduler.release()

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()
        until(lambda: self.scheduler.waiting == waiting + 1)

    def next(self) -> str:
        """The name of who comes in when the one inside leaves."""
        count = len(self.order)
        self._go.release()
        until(lambda: len(self.order) > count)
        return self.order[-1]

    def finish(self) -> list[str]:
        """Let all go; the names in the order of their coming in."""
        for _ in self._threads:
            self._go.release()
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive()
        return self.order


@pytest.fixture
def scheduler() -> EngineScheduler:
    """A scheduler of width 1 with the test inside."""
    scheduler = EngineScheduler(1)
    scheduler.acquire()
    return scheduler


def test_first_come_first_served(scheduler: EngineScheduler) -> None:
    callers = Callers(scheduler)
    for name in "abcde":
        callers.arrive(name)
    scheduler.release()
    assert callers.finish() == list("abcde")


def test_higher_priorities_first_and_ties_in_turn(scheduler: EngineScheduler) -> None:
    callers = Callers(scheduler)
    for name, priority in [("a", 0), ("b", 2), ("c", -1), ("d", 2), ("e", 0), ("f", 5)]:
        callers.arrive(name, priority)
    scheduler.release()
    assert callers.finish() == list("fbdaec")


def test_a_low_priority_is_passed_over_only_so_often(scheduler: EngineScheduler) -> None:
    callers = Callers(scheduler)
    callers.arrive("low", 0)
    callers.arrive("high 0", 2)
    scheduler.release()
    until(lambda: callers.order == ["high 0"])
    for number in range(1, 4 * ADMISSIONS_PER_PRIORITY):
        callers.arrive(f"high {number}", 2)
        if callers.next() == "low":
            break
    assert callers.finish().index("low") == 2 * ADMISSIONS_PER_PRIORITY


def test_no_more_than_its_width_are_inside() -> None:
    scheduler = EngineScheduler(2)
    scheduler.acquire()
    scheduler.acquire()
    callers = Callers(scheduler)
    callers.arrive("a")
    callers.arrive("b")
    scheduler.release()
    until(lambda: callers.order == ["a"])
    assert scheduler.waiting == 1
    scheduler.release()
    assert callers.finish() == ["a", "b"]
    scheduler.acquire()
    scheduler.acquire()
    with pytest.raises(Cancelled):
        scheduler.acquire(cancellation=CancellationToken(0.0))


def test_cancelled_while_waiting(scheduler: EngineScheduler) -> None:
    callers = Callers(scheduler)
    cancellation = CancellationToken()
    callers.arrive("a")
    callers.arrive("b", 9, cancellation)
    callers.arrive("c")
    cancellation.cancel()
    until(lambda: callers.interrupted == ["b"])
    assert callers.order == []
    scheduler.release()
    assert callers.finish() == ["a", "c"]
    scheduler.acquire()  # the place is free again


def test_cancelled_before_it_waits(scheduler: EngineScheduler) -> None:
    cancellation = CancellationToken()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        scheduler.acquire(cancellation=cancellation)
    assert scheduler.waiting == 0


def test_no_time_to_wait(scheduler: EngineScheduler) -> None:
    with pytest.raises(Cancelled):
        scheduler.acquire(cancellation=CancellationToken(0.0))
    assert scheduler.waiting == 0


class Stalled:
    """A model of concurrency 1 whose engine is busy with another answer until `proceed`."""

    def __init__(self) -> None:
        self.proceed = threading.Event()
        self.busy = threading.Event()
        self.engine = FakeEngine(before_extend=self._before)
        self.model: Model = fake_model(self.engine)
        self._first = threading.Thread(target=lambda: self.model.respond("first"), daemon=True)
        self._first.start()
        assert self.busy.wait(30)

    def end(self) -> None:
        self.proceed.set()
        self._first.join(timeout=30)
        assert not self._first.is_alive()

    def _before(self, state: FakeDecodeState) -> None:
        if state is self.engine.states[0]:
            self.busy.set()
            assert self.proceed.wait(30)


def test_cancel_ends_an_answer_that_waits_for_the_engine() -> None:
    stalled = Stalled()
    stream = stalled.model.stream("second")
    reader = threading.Thread(target=lambda: list(stream), daemon=True)
    reader.start()
    until(lambda: stalled.model.runtime.scheduler.waiting == 1)
    stream.cancel()
    reader.join(timeout=30)
    assert not reader.is_alive()
    assert stream.reply.finish_reason == "cancelled"
    assert stalled.engine.states[1].extended == []
    assert stalled.engine.states[1].closed
    stalled.end()


def test_deadline_ends_an_answer_that_waits_for_the_engine() -> None:
    stalled = Stalled()
    with pytest.raises(DeadlineExceeded):
        stalled.model.respond("second", deadline=0.01)
    assert stalled.engine.states[1].extended == []
    stalled.end()


def test_an_engine_that_fails_frees_its_place() -> None:
    def fail(_: FakeDecodeState) -> None:
        raise RuntimeError("broken")

    engine = FakeEngine(before_extend=fail)
    model = fake_model(engine)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            model.respond("Hello")


@pytest.mark.parametrize("priority", [-11, 11, 0.5, True, "1"])
def test_priority_out_of_range(priority: object) -> None:
    with pytest.raises(InvalidOption, match="priority"):
        fake_model().respond("Hello", priority=priority)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_raises_at_once_even_where_the_lock_was_held() -> None:
    scheduler = EngineScheduler(1)
    with scheduler._guard:
        child = os.fork()
        if child == 0:
            try:
                scheduler.acquire()
            except EngineError as error:
                os._exit(7 if error.hint else 8)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
