"""Estimate values with bootstrap intervals.

Outcomes are drawn again within their family, because the benchmark chose the families, and chance
the questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.hybrid.outcomes import Outcome
from edgesdk.hybrid.confidence.linear_models import auroc
from edgesdk.hybrid.confidence.threshold import binomial_tail

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

_DRAWS = 1000
_TAIL = 2.5


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval (percentile bootstrap)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Families:
    """Where the outcomes of each family are among others."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        names = sorted({outcome.family for outcome in outcomes})
        self.places: dict[str, Places] = {
            name: np.array([i for i, one in enumerate(outcomes) if one.family == name])
            for name in names
        }

    def estimate(self, statistic: Callable[[list[Places]], float]) -> Estimate:
        """A statistic of the places of each family; the draws are the same for each statistic, so
        differences of two may be estimated too."""
        rng = np.random.default_rng(0)
        groups = list(self.places.values())
        drawn = [
            statistic([group[rng.integers(0, len(group), len(group))] for group in groups])
            for _ in range(_DRAWS)
        ]
        low, high = np.nanpercentile(drawn, [_TAIL, 100 - _TAIL])
        return Estimate(statistic(groups), float(low), float(high))


def share(count: int, trials: int) -> Estimate:
    """A share with its exact 95% interval (Clopper and Pearson 1934), which is one even where
    nothing, or everything, was counted."""
    tail = _TAIL / 100
    low = 0.0 if count == 0 else _root(lambda p: binomial_tail(count - 1, trials, p) < 1 - tail)
    high = 1.0 if count == trials else _root(lambda p: binomial_tail(count, trials, p) < tail)
    return Estimate(count / trials, low, high)


def _root(passed: Callable[[float], bool]) -> float:
    """Where between 0 and 1 `passed` becomes true."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if passed(middle) else (middle, high)
    return low


def within_families(confidences: Floats, right: Flags, groups: Sequence[Places]) -> float:
    """Mean AUROC of the families; one that has only right or only wrong answers says nothing."""
    found = [
        auroc(confidences[group], right[group])
        for group in groups
        if right[group].any() and not right[group].all()
    ]
    return float(np.mean(found)) if found else float("nan")
