"""From signals to one number, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.trust.regression import LogisticRegression
from edgesdk.hybrid.trust.signals import NAMES, Signals


@dataclass(frozen=True)
class Confidence:
    """How sure an answer is, and how sure it has to be.

    Attributes:
        regression: trained on answers of this model that were right and wrong. Without one the
            confidence is the geometric mean of the tokens' probabilities, which orders answers but
            promises nothing.
        threshold: from here on an answer is kept.
        decide_after: tokens after which an answer that will not get there is given up.
        give_up_below: what its confidence then is under. Answers so ended are never kept, also
            where the threshold is lower: a calibration must not change which those are.

    Raises:
        InvalidOption: a number is out of its range, or the regression is of other signals.
    """

    regression: LogisticRegression | None = None
    threshold: float = 0.7
    decide_after: int = 24
    give_up_below: float = 0.35

    def __post_init__(self) -> None:
        # Above 1 nothing is ever kept, which is what a calibration that failed asks for.
        if not (self.threshold >= 0 and self.give_up_below >= 0):
            raise InvalidOption("Neither the threshold nor give_up_below may be negative.")
        if self.decide_after < 1:
            raise InvalidOption(f"decide_after must be at least 1, not {self.decide_after}.")
        if self.regression is not None and self.regression.names != NAMES:
            raise InvalidOption(
                "The regression was trained on other signals.", hint="Train it again."
            )

    def of(self, signals: Signals) -> float:
        """The confidence in an answer with these signals, 0 to 1."""
        if self.regression is None:
            return math.exp(signals.mean_log_probability)
        return float(self.regression.probability(signals.vector()[None])[0])

    def hopeless(self, signals: Signals) -> bool:
        """Whether to give the answer up half-way."""
        return signals.length >= self.decide_after and self.of(signals) < self.give_up_below
