"""Turns signals into one confidence between 0 and 1, and compares it with a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_to_json
from edgesdk.hybrid.confidence.probe import HiddenStateProbe
from edgesdk.hybrid.confidence.regression import LogisticRegression, sigmoid
from edgesdk.hybrid.confidence.signals import SIGNAL_NAMES, Signals

# The name of the artifact; see `edgesdk.hybrid.confidence.artifacts`.
CONFIDENCE_ARTIFACT = "confidence"
AGREEMENT_NAMES = ("confidence", "agreement")
# The measure without training. A threshold of another measure does not hold for it.
UNTRAINED_MEASURE = "answer probability"
# A confidence of 0 or 1 has no logit.
_CLIP = 1e-6


@dataclass(frozen=True)
class Confidence:
    """How sure an answer is, and how sure it has to be.

    Attributes:
        regression: trained on answers of this model that were right and wrong. Without one the
            confidence is the probability of the whole answer, the product of its tokens': the
            longer an answer, the less it is trusted. That tells right answers from wrong ones
            better than the mean of its tokens' probabilities, and is nearer to how often they
            are right (benchmarks/hybrid), but guarantees nothing.
        threshold: lowest confidence of an answer that is kept. By default it has to be right more
            likely than wrong.
        decide_after: tokens after which an answer may be aborted.
        abort_below: lowest confidence of an answer under way that goes on. An answer under it is
            predicted to be wrong and never kept, even if the threshold is lower: a calibration
            must not change which answers those are.
        fusion: combines confidence and agreement where the device answered several times; trained
            on pairs of `agreement_features`. Without it, their mean is taken.
        probe: of hidden states; its output is a signal of the regression.
        partial_regression: predicts, from the signals of an answer under way, whether it will be
            right; trained on such answers. Without it, the regression for whole answers is used.

    Raises:
        InvalidOption: a number is out of its range, or the regression is of other signals.
    """

    regression: LogisticRegression | None = None
    threshold: float = 0.5
    decide_after: int = 24
    abort_below: float = 0.25
    fusion: LogisticRegression | None = None
    probe: HiddenStateProbe | None = None
    partial_regression: LogisticRegression | None = None

    def __post_init__(self) -> None:
        # Above 1 nothing is ever kept, which is what a calibration that failed asks for.
        if not (self.threshold >= 0 and self.abort_below >= 0):
            raise InvalidOption("Neither the threshold nor abort_below may be negative.")
        if self.decide_after < 1:
            raise InvalidOption(f"decide_after must be at least 1, not {self.decide_after}.")
        for trained, names in (
            (self.regression, SIGNAL_NAMES),
            (self.partial_regression, SIGNAL_NAMES),
            (self.fusion, AGREEMENT_NAMES),
        ):
            if trained is not None and trained.names != names:
                raise InvalidOption(
                    "The regression was trained on other signals.", hint="Train it again."
                )

    def of(self, signals: Signals) -> float:
        """Compute the confidence in an answer with these signals, 0 to 1."""
        return _confidence(self.regression, signals)

    def with_agreement(self, confidence: float, agreement: float) -> float:
        """Combine a confidence with the agreement of the device's other answers, 0 to 1."""
        if self.fusion is None:
            return (confidence + agreement) / 2
        return float(self.fusion.probability(agreement_features(confidence, agreement)[None])[0])

    def predicts_wrong(self, signals: Signals) -> bool:
        """Whether an answer of `decide_after` tokens or more is predicted to be wrong."""
        return self.partial_confidence(signals) < self.abort_below

    def partial_confidence(self, signals: Signals) -> float:
        """Compute the confidence that an answer under way will be right, 0 to 1."""
        return _confidence(self.partial_regression or self.regression, signals)

    def save(self, artifacts: ArtifactStore, bundle: str) -> None:
        """Store it for the model with this hash, so that new clients of the model use it.

        Raises:
            RequestError: it cannot be written.
        """
        artifacts.write(bundle, CONFIDENCE_ARTIFACT, value_to_json(self))


def agreement_features(confidence: float, agreement: float) -> npt.NDArray[np.float64]:
    """Make the features of a fusion, float64 [2]: the confidence's logit, and the agreement."""
    inside = min(max(confidence, _CLIP), 1 - _CLIP)
    return np.array([math.log(inside / (1 - inside)), agreement], np.float64)


def _confidence(trained: LogisticRegression | None, signals: Signals) -> float:
    if trained is None:
        return float(sigmoid(np.array(signals.log_odds)))
    return float(trained.probability(signals.vector()[None])[0])
