"""One deadline over everything that a call does."""

from __future__ import annotations

import math
from time import monotonic


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
