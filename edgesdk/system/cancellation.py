"""End work early: on a caller's wish, or at a deadline."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic, perf_counter


class Cancelled(Exception):
    """The caller stopped before it had what it asked for. Never leaves the SDK."""


class CancellationToken:
    """Stands behind the calls of one answer, one call at a time.

    Args:
        until: `time.perf_counter()` at which it stops by itself; None for never.

    Attributes:
        waited: seconds that its calls have waited for those of others. Whoever makes it wait adds
            to it.
        paused: seconds that its calls have rested for a power policy.
    """

    def __init__(self, until: float | None = None) -> None:
        self.waited = 0.0
        self.paused = 0.0
        self._until = until
        self._timed = until is None
        self._stopped = False
        self._act: Callable[[], None] | None = None
        self._guard = threading.Lock()

    def stop(self) -> None:
        """Stop for good, from any thread: whatever is under way for this caller ends now."""
        with self._guard:
            self._stopped = True
            if self._act is not None:
                self._act()

    @contextmanager
    def on_cancel(self, act: Callable[[], None]) -> Generator[None, None, None]:
        """Have `act` called, from another thread, when the caller stops in this block.

        Args:
            act: quick, and harmless where what it ends has ended just then.

        Raises:
            Interrupted: it has stopped before.
        """
        if not self._timed:
            self._watch_the_clock()
        with self._guard:
            if self._stopped:
                raise Cancelled
            self._act = act
        try:
            yield
        finally:
            with self._guard:
                self._act = None

    def _watch_the_clock(self) -> None:
        assert self._until is not None, "only who has a time stops at it"
        self._timed = True
        left = self._until - perf_counter()
        if left <= 0:
            self.stop()
            return
        # The thread holds no reference, so it ends with the answer, also with one that is dropped.
        timer = threading.Timer(left, _stop, [weakref.ref(self)])
        timer.daemon = True
        timer.start()
        weakref.finalize(self, timer.cancel)


def _stop(held: weakref.ref[CancellationToken]) -> None:
    cancellation = held()
    if cancellation is not None:
        cancellation.stop()


class Deadline:
    """A moment after which nothing more is to be waited for.

    Args:
        seconds: from now; None for no limit.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._end = math.inf if seconds is None else monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, not under 0; infinite without a limit."""
        return max(self._end - monotonic(), 0.0)

    @property
    def seconds(self) -> float | None:
        """Seconds left; None without a limit."""
        return None if self._end == math.inf else self.remaining

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return self.remaining == 0.0
