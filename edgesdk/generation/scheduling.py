"""Decides which answer uses the engine next, when several are made at once."""

from __future__ import annotations

import threading
from time import perf_counter

import numpy.typing as npt

from edgesdk.engines.base import DecodeState, HiddenStates, Logits, Rows
from edgesdk.system.cancellation import CancellationToken, Cancelled

# A request that was passed over so many times counts as one priority higher.
ADMISSIONS_PER_PRIORITY = 8


class _WaitingCall:
    def __init__(self, priority: int, since: int) -> None:
        self.priority = priority
        self.since = since
        self.admitted = False
        self.woken = threading.Event()


class EngineScheduler:
    """Lets at most `width` callers in at once.

    Of those who wait the highest priority goes first, and of several the one who came first. Each
    `ADMISSIONS_PER_PRIORITY` admissions that a caller waits raise it by one priority, so a low one
    waits long but
    not for ever: among priorities p < q, at most `ADMISSIONS_PER_PRIORITY` * (q - p) newcomers are
        let in before it.
    Only those who wait are compared: nobody inside is interrupted.
    """

    def __init__(self, width: int) -> None:
        self._free = width
        self._admissions = 0
        self._waiting: list[_WaitingCall] = []
        self._guard = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def enter(self, priority: int = 0, cancellation: CancellationToken | None = None) -> None:
        """Wait for admission; `leave` must follow.

        Raises:
            Cancelled: `cancellation` was cancelled or expired; the call is not in.
        """
        with self._guard:
            if self._free > 0:
                self._free -= 1
                self._admissions += 1
                return
            waiter = _WaitingCall(priority, self._admissions)
            self._waiting.append(waiter)
        cancellation = CancellationToken() if cancellation is None else cancellation
        begun = perf_counter()
        try:
            with cancellation.on_cancel(waiter.woken.set):
                waiter.woken.wait()
        except BaseException:
            if self._withdraw(waiter):
                self.leave()
            raise
        finally:
            cancellation.queue_seconds += perf_counter() - begun
        if not self._withdraw(waiter):
            raise Cancelled

    def leave(self) -> None:
        """Make room for the next."""
        with self._guard:
            if not self._waiting:
                self._free += 1
                return
            # The list is in order of arrival, and max() takes the first of equals.
            waiter = max(self._waiting, key=self._standing)
            self._waiting.remove(waiter)
            self._admissions += 1
            waiter.admitted = True
            waiter.woken.set()

    def _standing(self, waiter: _WaitingCall) -> int:
        return waiter.priority + (self._admissions - waiter.since) // ADMISSIONS_PER_PRIORITY

    def _withdraw(self, waiter: _WaitingCall) -> bool:
        """Wait no longer; True where admission came first."""
        with self._guard:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            return waiter.admitted


class ScheduledDecodeState:
    """A `DecodeState` whose engine calls go through a gate, for the time of one answer.

    Args:
        cancellation: behind all calls, those on forks included.
    """

    def __init__(
        self,
        state: DecodeState,
        gate: EngineScheduler,
        priority: int,
        cancellation: CancellationToken,
    ) -> None:
        self._state = state
        self._gate = gate
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
        self._gate.enter(self._priority, cancellation)
        try:
            return self._state.extend(tokens, logits=logits, cancellation=cancellation)
        finally:
            self._gate.leave()

    def fork(self) -> ScheduledDecodeState:
        return ScheduledDecodeState(
            self._state.fork(), self._gate, self._priority, self._cancellation
        )
