"""From answers whose right and wrong is known to the regression that a confidence is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgesdk.hybrid.trust.regression import LogisticRegression, train
from edgesdk.hybrid.trust.signals import NAMES, Signals

# The odds of the answer are the model's own word for what is asked here, so they are taken as they
# are, and the other signals correct them as far as the examples insist. Trained on some hundreds
# with equal penalties, a regression knew right from wrong in unknown families less well than the
# odds alone (benchmarks/hybrid.py).
_OWN_WORD = "log_odds"
_PENALTY_OF_OWN_WORD = 0.1
_PENALTY = 10.0


def train_signals(signals: Sequence[Signals], right: Sequence[bool]) -> LogisticRegression:
    """The regression for `edgesdk.hybrid.trust.confidence.Confidence`.

    Args:
        signals: of answers of one model, some hundreds,
        right: and whether each was. None of them may calibrate the threshold later.

    Raises:
        RequestError: all are right, or all are wrong, or there is none.
    """
    features = np.array([each.vector() for each in signals], np.float64).reshape(-1, len(NAMES))
    penalties = [_PENALTY_OF_OWN_WORD if name == _OWN_WORD else _PENALTY for name in NAMES]
    return train(NAMES, features, np.asarray(right, np.bool_), penalty=penalties)
