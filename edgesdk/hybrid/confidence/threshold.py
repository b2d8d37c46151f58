"""A threshold with a promise: among the answers that are kept, few are wrong.

Learn then Test (Angelopoulos, Bates, Candès, Jordan, Lei 2021, arXiv:2110.01052) with fixed
sequence testing: thresholds are tested from the strictest to the loosest, and the first that fails
ends it. Given the scores, the wrong ones among the kept are binomial, so each test is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgesdk.errors import InvalidOption

# Where the sequence begins, as a share of the labels: with fewer one unlucky error would end it,
# with more it could not promise for the few that a weak model is sure of. In simulations of 100
# labels 0.3 promised more often, and kept more, than 0.4, 0.5, or several starts that share delta.
_FIRST_SHARE = 0.3
_MAX_LABELS = 100_000


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it promises.

    Attributes:
        threshold: answers of at least this confidence are kept; None where no promise can be made,
            and nothing is to be kept.
        alpha: share of wrong answers among the kept that is not exceeded,
        delta: but for this probability, over the draw of the labels.
        labels: how many there were,
        kept: of which the threshold keeps so many,
        wrong: of which so many are wrong.
        missing: about how many more labels would allow a promise, where there is none now; None
            where none would help, or none are needed.
    """

    threshold: float | None
    alpha: float
    delta: float
    labels: int
    kept: int
    wrong: int
    missing: int | None

    def phrase(self) -> str:
        """What it says, for people."""
        if self.threshold is not None:
            return (
                f"Answers of confidence {self.threshold:.3f} and more are kept:"
                f" {self.kept} of {self.labels}, of which {self.wrong} were wrong. With"
                f" {1 - self.delta:.0%} certainty at most {self.alpha:.0%} of those to come are."
            )
        start = f"{self.labels} labels do not show that at most {self.alpha:.0%} would be wrong"
        if self.missing is None:
            return f"{start}, and more would not: even the surest answers are wrong more often."
        return f"{start}; about {self.missing} more might."


def calibrate(
    confidences: Sequence[float], right: Sequence[bool], *, alpha: float = 0.2, delta: float = 0.05
) -> Calibration:
    """The loosest threshold for which the promise holds.

    Args:
        confidences: of answers drawn as those to come will be, none of which trained the
            confidence.
        right: whether each answer was.

    Raises:
        InvalidOption: alpha or delta is no probability, or the lengths differ.
    """
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise InvalidOption("alpha and delta must lie between 0 and 1.")
    if len(confidences) != len(right):
        raise InvalidOption(f"There are {len(confidences)} confidences but {len(right)} labels.")
    scores = np.asarray(confidences, np.float64)
    if not np.isfinite(scores).all():
        raise InvalidOption("A confidence is not a finite number.")
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    wrong = np.cumsum(~np.asarray(right, bool)[order])
    # A threshold keeps all answers of the same confidence or none.
    ends = [i + 1 for i in range(len(scores)) if i + 1 == len(scores) or scores[i + 1] < scores[i]]
    best = 0
    for kept in (end for end in ends if end >= _first_size(len(scores), alpha, delta)):
        if binomial_tail(int(wrong[kept - 1]), kept, alpha) > delta:
            break
        best = kept
    found = best > 0
    return Calibration(
        threshold=float(scores[best - 1]) if found else None,
        alpha=alpha,
        delta=delta,
        labels=len(scores),
        kept=best,
        wrong=int(wrong[best - 1]) if found else 0,
        missing=None if found else _missing_labels(ends, wrong.tolist(), alpha, delta),
    )


def binomial_tail(most: int, trials: int, probability: float) -> float:
    """The chance of at most `most` successes in `trials`, exactly."""
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(probability)
        + (trials - k) * math.log1p(-probability)
        for k in range(most + 1)
    ]
    highest = max(logs)
    return min(1.0, math.exp(highest) * math.fsum(math.exp(one - highest) for one in logs))


def _first_size(labels: int, alpha: float, delta: float) -> float:
    """How many answers the first threshold of the sequence keeps, at least: never fewer than pass
    the test where all of them are right."""
    return max(_FIRST_SHARE * labels, math.ceil(math.log(delta) / math.log1p(-alpha)))


def _missing_labels(ends: list[int], wrong: list[int], alpha: float, delta: float) -> int | None:
    """How many more labels might do, if those to come are as those that are here: the first
    threshold has to pass."""
    labels = ends[-1] if ends else 0
    if labels == 0:
        return math.ceil(_first_size(0, alpha, delta) / _FIRST_SHARE)
    # Half an error more than there were: none among a few does not show that there will be none.
    rate = min((wrong[end - 1] + 0.5) / (end + 1) for end in ends if end >= _FIRST_SHARE * labels)
    total = labels
    while rate < alpha and total < _MAX_LABELS:
        total += max(total // 20, 1)
        size = math.ceil(_first_size(total, alpha, delta))
        if size <= total and binomial_tail(math.floor(rate * size), size, alpha) <= delta:
            return total - labels
    return None
