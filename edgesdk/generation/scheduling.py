"""Decides which answer uses the engine next, when several are made at once."""

from __future__ import annotations

import threading
from time import perf_counter

import numpy.typing as npt

from edgesdk.engines.base import DecodeState, HiddenStates, Logits, Rows
from edgesdk.errors import EngineError
from edgesdk.system.cancellation import CancellationToken, Cancelled
from edgesdk.system.forks import ForkGuard

# A call that was passed over so many times counts as one priority higher.
ADMISSIONS_PER_PRIORITY = 8


class _WaitingCall:
    def __init__(self, priority: int, arrived_at: int) -> None:
        self.priority = priority
        self.arrived_at = arrived_at
        self.admitted = False
        self.woken = threading.Event()


class EngineScheduler:
    """Lets at most `width` calls use the engine at once.

    Of those that wait, the one of the highest priority goes first; of several, the one that came
    first. Each `ADMISSIONS_PER_PRIORITY` admissions that a call waits raise it by one priority, so
    a low one waits long but not for ever: among priorities p < q, at most
    `ADMISSIONS_PER_PRIORITY` * (q - p) newcomers are let in before it. Only those that wait are
    compared: no call under way is interrupted.
    """

    def __init__(self, width: int) -> None:
        self._fork_guard = ForkGuard("The model", EngineError)
        self._free = width
        self._admissions = 0
        self._waiting: list[_WaitingCall] = []
        self._guard = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def acquire(self, priority: int = 0, cancellation: CancellationToken | None = None) -> None:
        """Wait for admission; `release` must follow.

        Raises:
            Cancelled: `cancellation` was cancelled or expired; the call is not in.
            EngineError: this process was forked after the model was loaded.
        """
        self._fork_guard.check()
        with self._guard:
            if self._free > 0:
                self._free -= 1
                self._admissions += 1
                return
            call = _WaitingCall(priority, self._admissions)
            self._waiting.append(call)
        cancellation = CancellationToken() if cancellation is None else cancellation
        begun = perf_counter()
        try:
            with cancellation.on_cancel(call.woken.set):
                call.woken.wait()
        except BaseException:
            if self._withdraw(call):
                self.release()
            raise
        finally:
            cancellation.queue_seconds += perf_counter() - begun
        if not self._withdraw(call):
            raise Cancelled

    def release(self) -> None:
        """Make room for the next."""
        with self._guard:
            if not self._waiting:
                self._free += 1
                return
            # The list is in order of arrival, and max() takes the first of equals.
            call = max(self._waiting, key=self._effective_priority)
            self._waiting.remove(call)
            self._admissions += 1
            call.admitted = True
            call.woken.set()

    def _effective_priority(self, call: _WaitingCall) -> int:
        return call.priority + (self._admissions - call.arrived_at) // ADMISSIONS_PER_PRIORITY

    def _withdraw(self, call: _WaitingCall) -> bool:
        """Wait no longer; True where admission came first."""
        with self._guard:
            if call in self._waiting:
                self._waiting.remove(call)
            return call.admitted


class ScheduledDecodeState:
    """A `DecodeState` whose engine calls take turns with those of other answers.

    Args:
        cancellation: ends all calls, those on forks included.
    """

    def __init__(
        self,
        state: DecodeState,
        scheduler: EngineScheduler,
        priority: int,
        cancellation: CancellationToken,
    ) -> None:
        self._state = state
        self._scheduler = scheduler
        self._priority = priority
        self._cancellation = cancellation
        self.rewind = state.rewind
        self.save = state.save
        self.restore = state.restore
        self.close = state.close

    @property
    def tokens(self) -> tuple[int, ...]:
        return self._state.tokens

    @property
    def hidden_states(self) -> HiddenStates | None:
        return self._state.hidden_states

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        cancellation = self._cancellation if cancellation is None else cancellation
        self._scheduler.acquire(self._priority, cancellation)
        try:
            return self._state.extend(tokens, logits=logits, cancellation=cancellation)
        finally:
            self._scheduler.release()

    def fork(self) -> ScheduledDecodeState:
        return ScheduledDecodeState(
            self._state.fork(), self._scheduler, self._priority, self._cancellation
        )
