"""A lock whose holder may also do the work of those who wait for it.

Flat combining (Hendler, Incze, Shavit, Tzafrir: "Flat Combining and the Synchronization-Parallelism
Tradeoff", SPAA 2010) without a thread of its own: whoever has the turn takes requests out of the
queue and runs them together with its own; a caller that is alone pays for two short locks.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

Work = TypeVar("Work")


class Ticket(Generic[Work]):
    """One caller's place in the queue.

    Args:
        asked: what another caller may do for this one; None where only this one can.
    """

    def __init__(self, asked: Work | None = None) -> None:
        self.asked = asked
        self.woken: threading.Lock | None = None
        self.left = False
        self.quits = False


class CombiningLock(Generic[Work]):
    """First come, first served."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holder: Ticket[Work] | None = None
        self._queue: collections.deque[Ticket[Work]] = collections.deque()
        self._gathered = threading.Event()
        self._enough = 0

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._queue)

    def wait(self, turn: Ticket[Work]) -> bool:
        """Wait in the queue.

        Returns:
            True: it is this caller's turn. False: another caller did what `turn` asks for, or it
            has `quit`. In each case, and after an exception too, `leave` must follow.
        """
        with self._guard:
            if turn.quits:
                return False
            if self._holder is None:
                self._holder = turn
                return True
            turn.woken = threading.Lock()
            turn.woken.acquire()
            self._queue.append(turn)
            if len(self._queue) == self._enough:
                self._gathered.set()
        turn.woken.acquire()
        return self._holder is turn

    def leave(self, turn: Ticket[Work]) -> None:
        """End the turn, or give up waiting for it."""
        with self._guard:
            turn.left = True
            if self._holder is turn:
                self._holder = self._queue.popleft() if self._queue else None
                if self._holder is not None:
                    _wake(self._holder)
            elif turn in self._queue:
                self._queue.remove(turn)

    def quit(self, turn: Ticket[Work]) -> None:
        """End the wait of `turn`, from any thread; one that was taken is waited for.

        Harmless where it does not wait.
        """
        with self._guard:
            turn.quits = True
            if turn in self._queue:
                self._queue.remove(turn)
                _wake(turn)

    def gather(self, count: int, seconds: float) -> bool:
        """Let others come before going on; False where fewer than `count` wait after `seconds`.

        Only whoever has the turn may call this.
        """
        with self._guard:
            if len(self._queue) >= count:
                return True
            self._gathered.clear()
            self._enough = count
        try:
            return self._gathered.wait(seconds)
        finally:
            self._enough = 0

    def take(self, wanted: Callable[[Work], bool]) -> list[Ticket[Work]]:
        """Take those out of the queue whose request is `wanted`; asked of each, the first first.

        Only whoever has the turn may call this; it owes each of them `finish` or `put_back`.
        """
        if not self._queue:
            return []
        with self._guard:
            taken = [turn for turn in self._queue if turn.asked is not None and wanted(turn.asked)]
            for turn in taken:
                self._queue.remove(turn)
        return taken

    def finish(self, turn: Ticket[Work]) -> None:
        """What `turn` asked for is done."""
        _wake(turn)

    def put_back(self, turn: Ticket[Work]) -> None:
        """Let `turn` wait again, as the last, if its caller still does."""
        with self._guard:
            if turn.quits:
                _wake(turn)
            elif not turn.left:
                self._queue.append(turn)

    @contextmanager
    def alone(self) -> Generator[None, None, None]:
        """A turn that does nobody else's work."""
        turn: Ticket[Work] = Ticket()
        try:
            self.wait(turn)
            yield
        finally:
            self.leave(turn)


def _wake(turn: Ticket[Work]) -> None:
    assert turn.woken is not None, "who waits can be woken"
    turn.woken.release()
