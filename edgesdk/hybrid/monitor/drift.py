"""Whether what the labels showed is still so.

Two detectors: one on audits, which tells whether the guarantee still holds, and one on confidences
alone, which needs no labels and can only tell that the prompts are others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgesdk.errors import InvalidOption

# Bets on how much more than alpha are wrong, as shares of the way from alpha to all.
_BETS = np.array([0.1, 0.2, 0.35, 0.5, 0.75])
# A change is looked for at every so many audits; at each one it would take longer to be believed.
_STRIDE = 5

_WINDOW = 100
_LEVEL = 0.01
# More labels hardly see more, and the exact test takes their number times the window's steps.
_MAX_REFERENCE = 500


class RiskMonitor:
    """Tests, audit by audit, whether more than `alpha` of the kept answers are wrong.

    A test by betting (Waudby-Smith and Ramdas 2024, arXiv:2010.09686; for a deployed model's risk
    Podkopaev and Ramdas 2022, arXiv:2110.06177). A stake of 1 is put, in shares of
    1 / (k (k + 1)), on "from the k-th place on more than alpha are wrong", each share spread over
    several rates, and each grows by the likelihood ratio of what is seen. While at most alpha are
    wrong the capital is a nonnegative supermartingale, so by Ville's inequality it ever reaches
    1 / delta with probability at most delta, however long one looks. Starting at each place keeps
    a long good time from hiding the bad one after it, as the Shiryaev-Roberts procedure does (Shin,
    Ramdas, Rinaldo 2024, "E-detectors", arXiv:2203.03532). Not for several threads.

    Raises:
        InvalidOption: alpha or delta is no probability.
    """

    def __init__(self, alpha: float, delta: float) -> None:
        if not (0 < alpha < 1 and 0 < delta < 1):
            raise InvalidOption("alpha and delta must lie between 0 and 1.")
        rates = alpha + (1 - alpha) * _BETS
        self._gains = np.log(rates / alpha)
        self._losses = np.log((1 - rates) / (1 - alpha))
        self._delta = delta
        self._stakes = np.zeros(len(_BETS))
        self._reserve = 1.0
        self._sums = np.zeros(len(_BETS))
        self._lowest = np.zeros(len(_BETS))
        self._starts = np.zeros(len(_BETS), np.int64)
        self.count = 0
        self.drifted = False

    @property
    def e_value(self) -> float:
        """The evidence against the guarantee: what a stake of 1 has become."""
        return self._reserve + float(self._stakes.sum())

    @property
    def since(self) -> int:
        """The audit, counted from 0, from which on the evidence is strongest."""
        return int(self._starts[np.argmax(self._sums - self._lowest)])

    def update(self, wrong: bool) -> None:
        """One more audit. Afterwards `drifted` is whether the e-value ever reached 1 / delta."""
        if self.count % _STRIDE == 0:
            place = self.count // _STRIDE + 1
            stake = 1 / (place * (place + 1))
            self._reserve -= stake
            self._stakes += stake / len(_BETS)
        better = self._sums <= self._lowest
        self._lowest[better] = self._sums[better]
        self._starts[better] = self.count
        step = self._gains if wrong else self._losses
        self._sums = self._sums + step
        self._stakes = self._stakes * np.exp(step)
        self.count += 1
        self.drifted = self.drifted or self.e_value >= 1 / self._delta


class ShiftDetector:
    """Tests whether confidences are still distributed as those of the labels were.

    Each `window` of them is compared with the labels' by the two-sample Kolmogorov-Smirnov test,
    the k-th at the level 0.01 / (k (k + 1)): all together a false alarm of one watch has at most
    probability 0.01. Not for several threads.

    Args:
        reference: the labels' confidences, in the order in which they were drawn.
    """

    def __init__(self, reference: Sequence[float], *, window: int = _WINDOW) -> None:
        self._reference = np.asarray(reference[:_MAX_REFERENCE], np.float64)
        self._window = window
        self._recent: list[float] = []
        self._tests = 0
        self.shifted = False

    def update(self, confidence: float) -> bool:
        """One more; whether it is the one that shows that they moved, which happens once."""
        if self.shifted or not len(self._reference):
            return False
        self._recent.append(confidence)
        if len(self._recent) < self._window:
            return False
        self._tests += 1
        level = _LEVEL / (self._tests * (self._tests + 1))
        self.shifted = ks_p_value(self._reference, np.array(self._recent)) <= level
        self._recent.clear()
        return self.shifted


def ks_p_value(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Compute the exact p-value of the two-sided Kolmogorov-Smirnov test of two samples.

    Under the null hypothesis the order of the pooled samples is a random walk from (0, 0) to
    (n, m), and the p-value is the chance that it strays as far from the diagonal as the samples do
    (Hodges 1958, "The significance probability of the Smirnov two-sample test"). Ties make it
    conservative.
    """
    n, m = len(one), len(other)
    pooled = np.unique(np.concatenate([one, other]))
    first = np.searchsorted(np.sort(one), pooled, side="right")
    second = np.searchsorted(np.sort(other), pooled, side="right")
    # In whole numbers, n m times the distance, so that equal distances are equal.
    distance = int(np.abs(first * m - second * n).max())
    # chance[i]: of being at (i, step - i) without having strayed.
    chance = np.zeros(n + 1)
    chance[0] = 1.0
    strayed = 0.0 if distance else 1.0
    i = np.arange(n + 1)
    for step in range(n + m):
        j = step - i
        left = n + m - step
        right = chance * np.clip(n - i, 0, None) / left
        chance = chance * np.clip(m - j, 0, None) / left
        chance[1:] += right[:-1]
        outside = np.abs(i * m - (step + 1 - i) * n) >= distance
        strayed += math.fsum(chance[outside])
        chance[outside] = 0.0
    return min(1.0, strayed)
