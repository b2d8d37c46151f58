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

from edgesdk.hybrid.trust.regression import Matrix

_FOLDS = 5
Flags = npt.NDArray[np.bool_]
Folds = npt.NDArray[np.int_]


def folds_of(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> Folds:
    """The fold of each prompt, [n]: the same for the same prompt, so that none is judged by
    itself."""
    return np.array([zlib.crc32(json.dumps(each).encode()) % _FOLDS for each in prompts])


def unseen(folds: Folds, judged: Callable[[Flags, Flags], Matrix]) -> Matrix:
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
