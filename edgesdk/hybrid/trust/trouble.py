"""Trouble with a form: how much of what the model would say its answer's form forbids.

A model that knows what to put into a form goes along with it; one that does not is dragged.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgesdk.decode.constraint import Constraint
from edgesdk.engines.base import Logits


class MindedConstraint:
    """Implements `Constraint`: another one, with an eye on what it forbids.

    Args:
        forbade: called at each step with the share of the probability that went to tokens which
            may not come next, 0 to 1.
    """

    def __init__(self, constraint: Constraint, forbade: Callable[[float], None]) -> None:
        self._constraint = constraint
        self._forbade = forbade
        self.accept = constraint.accept

    def masked(self, logits: Logits) -> Logits:
        allowed = self._constraint.masked(logits)
        self._forbade(forbidden_share(logits, allowed))
        return allowed

    @property
    def complete(self) -> bool:
        return self._constraint.complete

    @property
    def finished(self) -> bool:
        return self._constraint.finished


def forbidden_share(logits: Logits, allowed: Logits) -> float:
    """What part of the probability under `logits` the mask in `allowed` takes away.

    Args:
        logits: float32 [vocab].
        allowed: the same, with -inf for each token that may not come next.
    """
    weights = np.exp(logits - logits.max())
    kept = float(weights[allowed > -np.inf].sum(dtype=np.float64))
    # Sums of many small numbers may differ by a hair.
    return min(max(1 - kept / float(weights.sum(dtype=np.float64)), 0.0), 1.0)
