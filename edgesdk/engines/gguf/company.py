"""Which callers share batches, and whether it pays to wait for them."""

from __future__ import annotations

from edgesdk.engines.gguf.batch import SHARED_PART, Part, Request
from edgesdk.engines.gguf.turns import Turns

_SMALL = 8  # tokens of a step; drafts are checked in one
# A step waits for the others of the batch before it, which their callers are choosing tokens for:
# for this share of that batch's time at most. When that was in vain, so many batches do not wait.
_GATHER_SHARE = 0.5
_GATHER_PAUSE = 16


class Company:
    """What the last batches tell of the next. Only whoever has the turn may use it."""

    def __init__(self, turns: Turns[Request]) -> None:
        self._turns = turns
        self._batches = 0
        self._latest: dict[int, int] = {}
        self._seconds = 0.0
        self._gather_from = 0

    def served(self, parts: list[Part], seconds: float) -> None:
        """A batch of `parts` took so long."""
        self._batches += 1
        for part in parts:
            self._latest[part.request.sequence] = self._batches
        self._seconds = seconds

    def forget(self, sequence: int) -> None:
        """That sequence is gone."""
        self._latest.pop(sequence, None)

    def gather(self, mine: Request) -> None:
        """Wait for the others of the last batches, if `mine` is a step.

        Without this, callers split into groups that take turns, each with half-empty batches.
        """
        if len(mine.ids) > _SMALL or self._batches < self._gather_from:
            return
        others = self._others(mine)
        if others and not self._turns.gather(others, _GATHER_SHARE * self._seconds):
            self._gather_from = self._batches + _GATHER_PAUSE

    def shares(self, mine: Request) -> bool:
        """Whether others want tokens too: they wait, or were served a moment ago."""
        if len(mine.ids) <= SHARED_PART:
            return True  # it is no longer than a part anyway
        return self._turns.waiting > 0 or self._others(mine) > 0

    def _others(self, mine: Request) -> int:
        """How many other sequences the last two batches served."""
        since = self._batches - 1
        return sum(
            latest >= since
            for sequence, latest in self._latest.items()
            if sequence != mine.sequence
        )
