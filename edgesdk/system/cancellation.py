"""End work early: on somebody's wish, or at a deadline."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import perf_counter


class Cancelled(Exception):
    """The work ended before it was done, because its token was cancelled or had expired.

    It never leaves the SDK.
    """


class CancellationToken:
    """Ends the work that it is given to: when `cancel` is called, or at its deadline.

    May be used by several threads. A token whose deadline has passed is `expired`, not `cancelled`.

    Args:
        deadline: seconds that the work may take; None for no limit.
        started: `time.perf_counter()` from which the deadline counts; now by default.

    Attributes:
        queue_seconds: time that the work waited for other work. Whoever makes it wait adds to it.
        paused_seconds: time that the work rested for a power policy; likewise.
    """

    def __init__(self, deadline: float | None = None, *, started: float | None = None) -> None:
        begun = perf_counter() if started is None else started
        self.queue_seconds = 0.0
        self.paused_seconds = 0.0
        self._end = math.inf if deadline is None else begun + deadline
        self._has_timer = self._timed_out = False
        self._cancelled = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._children: weakref.WeakSet[CancellationToken] = weakref.WeakSet()
        self._guard = threading.RLock()

    def child(
        self, deadline: float | None = None, *, started: float | None = None
    ) -> CancellationToken:
        """A token for a part of the work, which ends when this one does, or sooner.

        Cancelling the child does not cancel this token.
        """
        child = CancellationToken(deadline, started=started)
        child._end = min(child._end, self._end)
        with self._guard:
            self._children.add(child)
        if self.cancelled:
            child.cancel()
        return child

    def cancel(self) -> None:
        """End the work now and for good; harmless where it has ended."""
        with self._guard:
            if self._cancelled.is_set():
                return
            self._cancelled.set()
            children = list(self._children)
            self._call()
        for child in children:
            child.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether somebody called `cancel`."""
        return self._cancelled.is_set()

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self._timed_out or perf_counter() >= self._end

    @property
    def remaining(self) -> float:
        """Seconds left to the deadline, not under 0; infinite without one."""
        return max(self._end - perf_counter(), 0.0)

    @property
    def timeout(self) -> float | None:
        """Seconds left as functions with a timeout take them: None without a deadline."""
        return None if self._end == math.inf else self.remaining

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` where the work should end."""
        if self.cancelled or self.expired:
            raise Cancelled

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until somebody calls `cancel`, for so many seconds at most; returns `cancelled`."""
        return self._cancelled.wait(seconds)

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Generator[None, None, None]:
        """Have `callback` called when the work should end while this block runs.

        It is called from another thread, once, and not after the block.

        Args:
            callback: quick, and harmless where what it ends has ended just then.

        Raises:
            Cancelled: the work should have ended before.
        """
        if self._end != math.inf and not self._has_timer:
            self._start_timer()
        with self._guard:
            self.raise_if_cancelled()
            self._callbacks.append(callback)
        try:
            yield
        finally:
            with self._guard:
                self._callbacks.remove(callback)

    def _call(self) -> None:
        for callback in self._callbacks:
            callback()

    def _time_out(self) -> None:
        with self._guard:
            # Said here, because the timer's clock may be a little ahead.
            self._timed_out = True
            self._call()

    def _start_timer(self) -> None:
        self._has_timer = True
        # The thread holds no reference, so it ends with the token, also with one that is dropped.
        timer = threading.Timer(self.remaining, _expire, [weakref.ref(self)])
        timer.daemon = True
        timer.start()
        weakref.finalize(self, timer.cancel)


def _expire(reference: weakref.ref[CancellationToken]) -> None:
    token = reference()
    if token is not None:
        token._time_out()
