"""The queue: how many requests may wait, and how long the next one should stay away."""

from __future__ import annotations

from time import monotonic

from edgesdk.server.api_errors import queue_full, shutting_down

_MAX_RETRY_SECONDS = 60.0


class AdmissionQueue:
    """Counts requests from their arrival to their end. For one event loop, not for threads.

    Args:
        limit: most requests that wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seconds = 1.0
        self.waiting = 0
        self.running = 0
        self.closed = False

    def enter(self) -> Admission:
        """A place in the room.

        Raises:
            ApiError: it is full (429), or the server is shutting down (503).
        """
        self.check_open()
        if self.waiting >= self._limit:
            ahead = self.waiting / max(1, self.running)
            raise queue_full(min(_MAX_RETRY_SECONDS, self._seconds * ahead))
        self.waiting += 1
        return Admission(self)

    def check_open(self) -> None:
        """Raise 503 if the server is shutting down."""
        if self.closed:
            raise shutting_down()

    def observe(self, seconds: float) -> None:
        """An answer took so long; later advice leans on it."""
        self._seconds += 0.2 * (seconds - self._seconds)


class Admission:
    """One request's place: first it waits, then its answer runs, then it leaves."""

    def __init__(self, admissions: AdmissionQueue) -> None:
        self._room = admissions
        self._started: float | None = None
        self._left = False

    def start(self) -> None:
        """Its turn has come."""
        self._room.waiting -= 1
        self._room.running += 1
        self._started = monotonic()

    def leave(self) -> None:
        """It is over; harmless where it was already."""
        if self._left:
            return
        self._left = True
        if self._started is None:
            self._room.waiting -= 1
        else:
            self._room.running -= 1
            self._room.observe(monotonic() - self._started)
