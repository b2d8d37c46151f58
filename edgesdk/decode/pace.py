"""How many tokens are worth drafting: decided by what the last drafts cost and brought."""

from __future__ import annotations

import statistics
from collections import deque

# The first guesses, before anything is measured: just enough hope for a short, cheap try.
_SLOPE = 0.4
_ACCEPTED, _REJECTED = 2.0, 1.0
# Where guesses can be watched, some must have been right before the first draft.
_WATCHED_ACCEPTED, _WATCHED_REJECTED = 1.0, 3.0
# Weight of the past against one more round.
_KEPT = 0.8
# Measurements that count: enough for a median that a busy machine does not sway.
_MEASURED = 9
# Measurements err, and a draft that fails costs more than one that is left out loses.
_LEAST_GAIN = 1.15
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 512


class Costs:
    """What verification costs on one engine, learned by all of its answers."""

    def __init__(self) -> None:
        self._slopes: deque[float] = deque(maxlen=_MEASURED)

    @property
    def slope(self) -> float:
        """Plain steps for each drafted token."""
        # A copy, because other answers measure meanwhile.
        slopes = tuple(self._slopes)
        return statistics.median(slopes) if slopes else _SLOPE

    def add(self, slope: float) -> None:
        """One more measurement."""
        self._slopes.append(slope)

    def doubt(self) -> None:
        """Nothing was drafted for long: forget the oldest measurement, if there is one."""
        if self._slopes:
            self._slopes.popleft()


class Pace:
    """The length that promises the most tokens per second; 0 where none promises a gain.

    Leviathan et al. 2023, arXiv:2211.17192, section 3: where each drafted token is accepted with
    probability a, n of them bring (1 - a^(n+1)) / (1 - a) tokens. Their verification is taken to
    cost 1 + slope * n plain steps. a is measured for each answer, slope for all of them. After a
    pause, twice as long each time, drafting is tried again.

    Args:
        watching: `watched` is told of guesses at plain steps too, so there is no need to draft in
            order to learn a.
    """

    def __init__(self, costs: Costs, *, watching: bool = False) -> None:
        self._costs = costs
        self._watching = watching
        self._prior = (_WATCHED_ACCEPTED, _WATCHED_REJECTED) if watching else (_ACCEPTED, _REJECTED)
        self._accepted, self._rejected = self._prior
        self._settled = False
        self._plain_seconds: float | None = None
        self._pause = _FIRST_PAUSE
        self._waiting = 0

    def length(self, most: int) -> int:
        """How many tokens to draft now, at most `most`. Ask once for each step."""
        if self._waiting:
            self._waiting -= 1
            return 0
        if most < 1 or self._plain_seconds is None:
            return 0
        rate = self._accepted / (self._accepted + self._rejected)
        slope = self._costs.slope
        best, gain = 0, _LEAST_GAIN
        tokens = power = 1.0
        for length in range(1, most + 1):
            power *= rate
            tokens += power
            promised = tokens / (1 + slope * length)
            if promised > gain:
                best, gain = length, promised
        hopeless = (1 + most) / (1 + slope * most) <= _LEAST_GAIN
        if best == 0 and (hopeless or not self._watching):
            self._rest()
        return best

    def plain(self, seconds: float) -> None:
        """A step without a draft took this long."""
        known = self._plain_seconds
        self._plain_seconds = seconds if known is None else _KEPT * known + (1 - _KEPT) * seconds

    def watched(self, right: bool) -> None:
        """A guess that was not verified turned out to be right or wrong."""
        self._accepted = _KEPT * self._accepted + right
        self._rejected = _KEPT * self._rejected + (not right)

    def drafted(self, proposed: int, accepted: int, seconds: float) -> None:
        """A step with a draft took this long, the drafting and the way back counted."""
        # The first draft also pays for an index, or for a draft model's prefill.
        if self._settled and self._plain_seconds:
            self._costs.add(max(seconds / self._plain_seconds - 1, 0.0) / proposed)
        self._settled = True
        self._accepted = _KEPT * self._accepted + accepted
        self._rejected = _KEPT * self._rejected + (accepted < proposed)
        if accepted == proposed:
            self._pause = _FIRST_PAUSE

    def _rest(self) -> None:
        self._waiting = self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._accepted, self._rejected = self._prior
        self._costs.doubt()
