"""A lock whose holder may also do the work of those who wait for it.

Flat combining (Hendler, Incze, Shavit, Tzafrir: "Flat Combining and the Synchronization-Parallelism
Tradeoff", SPAA 2010) without a thread of its own: whoever holds the lock takes tickets out of the
queue and does their work together with its own; a caller that nobody competes with pays for two
short locks.
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
        work: what another caller may do for this one; None where only this one can.
    """

    def __init__(self, work: Work | None = None) -> None:
        self.work = work
        self.wakeup: threading.Lock | None = None
        self.released = False
        self.cancelled = False


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

    def acquire(self, ticket: Ticket[Work]) -> bool:
        """Wait in the queue.

        Returns:
            True: this caller holds the lock. False: another caller did the work of `ticket`, or
            it was cancelled. In each case, and after an exception too, `release` must follow.
        """
        with self._guard:
            if ticket.cancelled:
                return False
            if self._holder is None:
                self._holder = ticket
                return True
            ticket.wakeup = threading.Lock()
            ticket.wakeup.acquire()
            self._queue.append(ticket)
            if len(self._queue) == self._enough:
                self._gathered.set()
        ticket.wakeup.acquire()
        return self._holder is ticket

    def release(self, ticket: Ticket[Work]) -> None:
        """Let the next one hold the lock, or give up waiting for it."""
        with self._guard:
            ticket.released = True
            if self._holder is ticket:
                self._holder = self._queue.popleft() if self._queue else None
                if self._holder is not None:
                    _wake(self._holder)
            elif ticket in self._queue:
                self._queue.remove(ticket)

    def cancel(self, ticket: Ticket[Work]) -> None:
        """End the wait of `ticket`, from any thread; the work of one that was taken is waited for.

        Harmless where it does not wait.
        """
        with self._guard:
            ticket.cancelled = True
            if ticket in self._queue:
                self._queue.remove(ticket)
                _wake(ticket)

    def gather(self, count: int, seconds: float) -> bool:
        """Let others come before going on; False where fewer than `count` wait after `seconds`.

        Only the holder may call this.
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
        """Take those out of the queue whose work is `wanted`; the first in the queue comes first.

        Only the holder may call this; it owes each of them `finish` or `put_back`.
        """
        if not self._queue:
            return []
        with self._guard:
            taken = [each for each in self._queue if each.work is not None and wanted(each.work)]
            for ticket in taken:
                self._queue.remove(ticket)
        return taken

    def finish(self, ticket: Ticket[Work]) -> None:
        """Wake the caller of `ticket`: its work is done."""
        _wake(ticket)

    def put_back(self, ticket: Ticket[Work]) -> None:
        """Let `ticket` wait again, as the last, if its caller still does."""
        with self._guard:
            if ticket.cancelled:
                _wake(ticket)
            elif not ticket.released:
                self._queue.append(ticket)

    @contextmanager
    def exclusive(self) -> Generator[None, None, None]:
        """Hold the lock without doing anybody else's work."""
        ticket: Ticket[Work] = Ticket()
        try:
            self.acquire(ticket)
            yield
        finally:
            self.release(ticket)


def _wake(ticket: Ticket[Work]) -> None:
    assert ticket.wakeup is not None, "who waits can be woken"
    ticket.wakeup.release()
