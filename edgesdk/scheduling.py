"""Who may use the engine next, when several answers are made at once."""

from __future__ import annotations

import threading
import weakref
from time import perf_counter

import numpy.typing as npt

from edgesdk.engines.base import HiddenStates, Logits, Rows, Sequence
from edgesdk.engines.caller import Caller, Interrupted

# A request that was passed over so many times counts as one priority higher.
AGEING = 8


class Cancel(threading.Event):
    """An event that ends what is under way for its callers."""

    def __init__(self) -> None:
        super().__init__()
        self._callers: weakref.WeakSet[Caller] = weakref.WeakSet()
        self._guard = threading.Lock()

    def caller(self, until: float | None = None) -> Caller:
        """A caller that stops when this is set, or at `until`."""
        caller = Caller(until)
        with self._guard:
            self._callers.add(caller)
        if self.is_set():
            caller.stop()
        return caller

    def set(self) -> None:
        super().set()
        with self._guard:
            callers = list(self._callers)
        for caller in callers:
            caller.stop()


class _Waiter:
    def __init__(self, priority: int, since: int) -> None:
        self.priority = priority
        self.since = since
        self.admitted = False
        self.woken = threading.Event()


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

    def enter(self, priority: int = 0, caller: Caller | None = None) -> None:
        """Wait for admission; `leave` must follow.

        Raises:
            Interrupted: `caller` stopped; it is not in.
        """
        with self._guard:
            if self._free > 0:
                self._free -= 1
                self._admissions += 1
                return
            waiter = _Waiter(priority, self._admissions)
            self._waiting.append(waiter)
        caller = Caller() if caller is None else caller
        begun = perf_counter()
        try:
            with caller.heeding(waiter.woken.set):
                waiter.woken.wait()
        except BaseException:
            if self._withdraw(waiter):
                self.leave()
            raise
        finally:
            caller.waited += perf_counter() - begun
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
            waiter.woken.set()

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
        caller: behind all calls, those on forks included.
    """

    def __init__(self, sequence: Sequence, gate: Gate, priority: int, caller: Caller) -> None:
        self._sequence = sequence
        self._gate = gate
        self._priority = priority
        self._caller = caller
        self.rewind = sequence.rewind
        self.save = sequence.save
        self.restore = sequence.restore
        self.close = sequence.close

    @property
    def tokens(self) -> tuple[int, ...]:
        return self._sequence.tokens

    @property
    def hidden_states(self) -> HiddenStates | None:
        return self._sequence.hidden_states

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        caller: Caller | None = None,
    ) -> Logits:
        caller = self._caller if caller is None else caller
        self._gate.enter(self._priority, caller)
        try:
            return self._sequence.extend(tokens, logits=logits, caller=caller)
        finally:
            self._gate.leave()

    def fork(self) -> GatedSequence:
        return GatedSequence(self._sequence.fork(), self._gate, self._priority, self._caller)
