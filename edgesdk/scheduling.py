"""Who may use the engine next, when several answers are made at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy.typing as npt

from edgesdk.engines.base import Logits, Rows, Sequence

# A request that was passed over so many times counts as one priority higher.
AGEING = 8


class Interrupted(Exception):
    """The caller's wish to stop came before its turn. Never leaves the SDK."""


class Cancel(threading.Event):
    """An event that also ends a wait at a gate."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def set(self) -> None:
        super().set()
        self._gate.look()


class _Waiter:
    def __init__(self, priority: int, stopped: Callable[[], bool], since: int) -> None:
        self.priority = priority
        self.stopped = stopped
        self.since = since
        self.admitted = False
        self.woken = threading.Lock()
        self.woken.acquire()


class Gate:
    """Lets at most `width` callers in at once.

    Of those who wait the highest priority goes first, and of several the one who came first. Each
    `AGEING` admissions that a caller waits raise it by one priority, so a low one waits long but
    not for ever: among priorities p < q, at most `AGEING` * (q - p) newcomers are let in before it.
    Only those who wait are compared: nobody inside is interrupted.
    """

    def __init__(self, width: int) -> None:
        self._free = width
        self._admissions = 0
        self._waiting: list[_Waiter] = []
        self._guard = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def enter(
        self,
        priority: int = 0,
        *,
        stopped: Callable[[], bool] = lambda: False,
        seconds: float | None = None,
    ) -> None:
        """Wait for admission; `leave` must follow.

        Args:
            stopped: whether the caller still wants in; asked by each `look`.
            seconds: the longest wait; None for as long as it takes.

        Raises:
            Interrupted: `stopped` said so, or the time is over; the caller is not in.
        """
        with self._guard:
            if self._free > 0:
                self._free -= 1
                self._admissions += 1
                return
            waiter = _Waiter(priority, stopped, self._admissions)
            self._waiting.append(waiter)
        try:
            # A `look` before the line above could not see this one.
            if not stopped():
                waiter.woken.acquire(timeout=-1 if seconds is None else max(seconds, 0.0))
        except BaseException:
            if self._withdraw(waiter):
                self.leave()
            raise
        if not self._withdraw(waiter):
            raise Interrupted

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
            waiter.woken.release()

    def look(self) -> None:
        """Wake those who wait and have `stopped`."""
        with self._guard:
            gone = [waiter for waiter in self._waiting if waiter.stopped()]
            for waiter in gone:
                self._waiting.remove(waiter)
                waiter.woken.release()

    def _standing(self, waiter: _Waiter) -> int:
        return waiter.priority + (self._admissions - waiter.since) // AGEING

    def _withdraw(self, waiter: _Waiter) -> bool:
        """Wait no longer; True where admission came first."""
        with self._guard:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            return waiter.admitted


class GatedSequence:
    """A `Sequence` whose engine calls go through a gate, for the time of one answer.

    Args:
        stopped: see `Gate.enter`.
        remaining: seconds that the answer may still take; None for no limit.
    """

    def __init__(
        self,
        sequence: Sequence,
        gate: Gate,
        priority: int,
        *,
        stopped: Callable[[], bool],
        remaining: Callable[[], float | None],
    ) -> None:
        self._sequence = sequence
        self._gate = gate
        self._priority = priority
        self._stopped = stopped
        self._remaining = remaining
        self.rewind = sequence.rewind
        self.fork = sequence.fork
        self.save = sequence.save
        self.restore = sequence.restore
        self.close = sequence.close

    @property
    def tokens(self) -> tuple[int, ...]:
        return self._sequence.tokens

    def extend(self, tokens: npt.ArrayLike, *, logits: Rows = "last") -> Logits:
        """As `Sequence.extend`.

        Raises:
            Interrupted: before anything was computed.
        """
        self._gate.enter(self._priority, stopped=self._stopped, seconds=self._remaining())
        try:
            return self._sequence.extend(tokens, logits=logits)
        finally:
            self._gate.leave()
