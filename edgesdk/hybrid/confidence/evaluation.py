"""What a regression says of an example that it was not trained on, for each example of a set.

Something that learns from the word of another one must hear it as it will be later: of examples
that the other one has not seen (stacked generalization, Wolpert, 1992).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.confidence.regression import Matrix

_FOLDS = 5
Mask = npt.NDArray[np.bool_]
Folds = npt.NDArray[np.int_]


def folds_of(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> Folds:
    """The fold of each prompt, [n]: the same for the same prompt, so that none is judged by
    itself."""
    return np.array([zlib.crc32(json.dumps(each).encode()) % _FOLDS for each in prompts])


def out_of_fold(folds: Folds, judged: Callable[[Mask, Mask], Matrix]) -> Matrix:
    """What is said of each example, float64 [n].

    Args:
        judged: called with which examples to train on and which to judge, bool [n] each; gives
            one number for each of the latter.
    """
    found = np.empty(len(folds))
    for fold in np.unique(folds):
        held = folds == fold
        found[held] = judged(~held, held)
    return found


Floats = npt.NDArray[np.float64]
Numbers = Sequence[float] | Floats
Flags = Sequence[bool] | npt.NDArray[np.bool_]


def auroc(confidences: Numbers, right: Flags) -> float:
    """Chance that a right answer has a higher confidence than a wrong one, ties counting half.

    The area under the ROC curve, by ranks (Hanley and McNeil 1982, doi:10.1148/radiology.143.1).

    Returns:
        0 to 1, where 0.5 is no better than chance.

    Raises:
        InvalidOption: the lengths differ, or all are right, or all are wrong.
    """
    scores, flags = _checked_lengths(confidences, right)
    rights = int(flags.sum())
    wrongs = len(flags) - rights
    if not rights or not wrongs:
        raise InvalidOption("An order of right and wrong answers needs some of each.")
    _, places, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    # The mean rank of each group of equal scores, from 1.
    ranks = np.cumsum(sizes) - (sizes - 1) / 2
    total = float(ranks[places][flags].sum())
    return (total - rights * (rights + 1) / 2) / (rights * wrongs)


def expected_calibration_error(confidences: Numbers, right: Flags, *, bins: int = 10) -> float:
    """How far confidence and share of right answers lie apart, on average over the answers.

    With bins of equal width (Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599). It is never 0
    on few answers, not even for a perfect confidence: each bin's share is a draw.

    Args:
        confidences: probabilities, 0 to 1.

    Raises:
        InvalidOption: the lengths differ, there is none, or one is no probability.
    """
    scores, flags = _checked_lengths(confidences, right)
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        raise InvalidOption("There must be confidences, each between 0 and 1.")
    places = np.minimum((scores * bins).astype(int), bins - 1)
    # Of a bin: the sum of (confidence - right); its size cancels out with its share of all.
    gaps = np.bincount(places, weights=scores - flags, minlength=bins)
    return float(np.abs(gaps).sum() / len(scores))


def _checked_lengths(confidences: Numbers, right: Flags) -> tuple[Floats, npt.NDArray[np.bool_]]:
    scores, flags = np.asarray(confidences, np.float64), np.asarray(right, np.bool_)
    if scores.shape != flags.shape or scores.ndim != 1:
        raise InvalidOption(f"There are {scores.size} confidences but {flags.size} labels.")
    if not np.isfinite(scores).all():
        raise InvalidOption("A confidence is not a finite number.")
    return scores, flags
