"""How sure a model was: signals of an answer, the confidence that they make, and its threshold.

Signals are read off the logits that the answer came from, and off the state behind the last of
them; none costs a forward pass. Entropy and log-probability of the first token are those of Gupta
et al. 2024 (arXiv:2404.10136), quantiles of token log-probabilities those of the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgesdk.engines.base import HiddenStates, Logits
from edgesdk.errors import InvalidOption
from edgesdk.generation.constraint import Constraint
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_to_json
from edgesdk.hybrid.confidence.linear_models import HiddenStateProbe, LogisticRegression, sigmoid

# Of the 10% quantile.
_QUANTILE = 0.1
_NGRAM = 4
# Logits are no more exact than this; a probability of 1 has no finite odds.
_MAX_LOG_PROBABILITY = -1e-6


@dataclass(frozen=True)
class Signals:
    """Signals of an answer of at least one token. Logarithms are natural.

    Attributes:
        first_entropy: of the distribution that the first token was drawn from, in nats.
        first_log_probability: of the first token.
        mean_log_probability: of the tokens,
        min_log_probability: the lowest,
        low_log_probability: and the 10% quantile.
        mean_margin: between the likeliest and the second token, in logits,
        min_margin: and the smallest.
        mean_entropy: of all distributions, in nats.
        repetition: share of the 4-grams that came before in the answer.
        length: tokens.
        log_odds: of the whole answer: ln(p / (1 - p)), where p is the product of the tokens'
            probabilities. Of short answers, which are right or wrong as a whole, no other signal
            tells more (benchmarks/hybrid); of long ones it is near their log-probability.
        forbidden: share of the probability that went to tokens which the output format forbids,
            mean over the tokens; 0 without an output format.
        prompt_log_odds: what the prompt alone says, by the prompt classifier; see
            `edgesdk.hybrid.confidence.prompt_classifier`. 0 without one. The logits say how sure
            the model is; how far that is to be believed depends on what it was asked.
        probe_log_odds: what the hidden state says that the answer ends in, by a probe; see
            `edgesdk.hybrid.confidence.linear_models`. 0 without one.
    """

    first_entropy: float
    first_log_probability: float
    mean_log_probability: float
    min_log_probability: float
    low_log_probability: float
    mean_margin: float
    min_margin: float
    mean_entropy: float
    repetition: float
    length: float
    log_odds: float
    forbidden: float = 0.0
    prompt_log_odds: float = 0.0
    probe_log_odds: float = 0.0

    def vector(self) -> npt.NDArray[np.float64]:
        """All signals in order, float64 [signals]."""
        return np.array([getattr(self, each.name) for each in fields(self)], np.float64)


SIGNAL_NAMES: tuple[str, ...] = tuple(each.name for each in fields(Signals))


class TokenStats(NamedTuple):
    """What is recorded of the logits of one step; signals are computed from these alone.

    Attributes:
        token: the chosen one; the last of an answer may be the end of the turn.
        log_probability: of the token.
        entropy: of the distribution, in nats.
        margin: between the likeliest and the second token, in logits.
        forbidden: share of the probability that the output format forbids.
    """

    token: int
    log_probability: float
    entropy: float
    margin: float
    forbidden: float = 0.0


class SignalMeter:
    """Records the steps of one answer, and computes its signals.

    Attributes:
        hidden_state: behind the last logits, float32 [hidden]; None where the engine gives none.
    """

    def __init__(self, prompt_log_odds: float = 0.0, probe: HiddenStateProbe | None = None) -> None:
        self.hidden_state: HiddenStates | None = None
        self._prompt_log_odds = prompt_log_odds
        self._probe = probe
        self._steps: list[TokenStats] = []
        self._forbidden = 0.0

    def observe(self, constraint: Constraint) -> Constraint:
        """Wrap `constraint`, so that each next step also records how much it forbids."""
        return ObservedConstraint(constraint, self._on_forbidden)

    def update(self, row: Logits, token: int, state: HiddenStates | None = None) -> None:
        """Record a step: `token` was chosen by the logits `row`, float32 [vocab], made of `state`,
        float32 [hidden]."""
        self.hidden_state = None if state is None else state.copy()
        top = np.partition(row, -2)[-2:]
        shifted = row - top[1]
        weights = np.exp(shifted)
        total = float(weights.sum(dtype=np.float64))
        log_total = float(np.log(total))
        # Entropy is log Z - E[x]; a banned token has weight 0 and no share in it.
        finite = np.where(weights > 0, shifted, 0)
        self._steps.append(
            TokenStats(
                token,
                float(shifted[token]) - log_total,
                log_total - float(np.dot(weights, finite)) / total,
                float(top[1] - top[0]),
                self._forbidden,
            )
        )

    def _on_forbidden(self, share: float) -> None:
        """The step that comes next is constrained."""
        self._forbidden = share

    @property
    def tokens(self) -> int:
        """How many steps were recorded."""
        return len(self._steps)

    @property
    def steps(self) -> tuple[TokenStats, ...]:
        """The recorded steps, in order."""
        return tuple(self._steps)

    def first(self, tokens: int) -> Signals:
        """Compute the signals of the first `tokens` tokens of an answer under way.

        A probe is trained on states that answers end in, so it has no part in these.
        """
        return signals_of(self._steps[:tokens], self._prompt_log_odds)

    def signals(self) -> Signals | None:
        """Compute the signals of the answer so far; None before its first token."""
        if not self._steps:
            return None
        probed = 0.0
        if self._probe is not None and self.hidden_state is not None:
            probed = self._probe.log_odds(self.hidden_state)
        return signals_of(self._steps, self._prompt_log_odds, probed)


def signals_of(
    steps: Sequence[TokenStats], prompt_log_odds: float = 0.0, probe_log_odds: float = 0.0
) -> Signals:
    """Compute the signals of an answer with at least one step."""
    found = np.array([step.log_probability for step in steps])
    margins = [step.margin for step in steps]
    return Signals(
        first_entropy=steps[0].entropy,
        first_log_probability=steps[0].log_probability,
        mean_log_probability=float(found.mean()),
        min_log_probability=float(found.min()),
        low_log_probability=float(np.quantile(found, _QUANTILE)),
        mean_margin=float(np.mean(margins)),
        min_margin=min(margins),
        mean_entropy=float(np.mean([step.entropy for step in steps])),
        repetition=repetition([step.token for step in steps]),
        length=float(len(steps)),
        log_odds=log_odds(float(found.sum())),
        forbidden=float(np.mean([step.forbidden for step in steps])),
        prompt_log_odds=prompt_log_odds,
        probe_log_odds=probe_log_odds,
    )


def log_odds(log_probability: float) -> float:
    """Compute ln(p / (1 - p)) from ln(p), exact also for p near 0 and near 1; at most some 14."""
    inside = min(log_probability, _MAX_LOG_PROBABILITY)
    return inside - math.log(-math.expm1(inside))


def repetition(tokens: Iterable[int]) -> float:
    """Compute the share of the 4-grams of `tokens` that came before, 0 to 1."""
    ids = list(tokens)
    grams = [tuple(ids[i : i + _NGRAM]) for i in range(len(ids) - _NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


class ObservedConstraint:
    """Implements `Constraint`: passes another one on, and tells `forbade` at each step the share of
    the probability that went to tokens which may not come next."""

    def __init__(self, constraint: Constraint, forbade: Callable[[float], None]) -> None:
        self._constraint = constraint
        self._on_forbidden = forbade
        self.accept = constraint.accept

    def masked(self, logits: Logits) -> Logits:
        allowed = self._constraint.masked(logits)
        self._on_forbidden(forbidden_share(logits, allowed))
        return allowed

    @property
    def complete(self) -> bool:
        return self._constraint.complete

    @property
    def finished(self) -> bool:
        return self._constraint.finished


def forbidden_share(logits: Logits, allowed: Logits) -> float:
    """Compute which part of the probability under `logits`, float32 [vocab], the mask in `allowed`
    takes away: there, each token that may not come next has -inf."""
    weights = np.exp(logits - logits.max())
    kept = float(weights[allowed > -np.inf].sum(dtype=np.float64))
    # Sums of many small numbers may differ by a hair.
    return min(max(1 - kept / float(weights.sum(dtype=np.float64)), 0.0), 1.0)


# The name of the artifact; see `edgesdk.hybrid.confidence.artifacts`.
CONFIDENCE_ARTIFACT = "confidence"
# The measure without training. A threshold of another measure does not hold for it.
UNTRAINED_MEASURE = "answer probability"


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
    probe: HiddenStateProbe | None = None
    partial_regression: LogisticRegression | None = None

    def __post_init__(self) -> None:
        # Above 1 nothing is ever kept, which is what a calibration that failed asks for.
        if not (self.threshold >= 0 and self.abort_below >= 0):
            raise InvalidOption("Neither the threshold nor abort_below may be negative.")
        if self.decide_after < 1:
            raise InvalidOption(f"decide_after must be at least 1, not {self.decide_after}.")
        for trained in (self.regression, self.partial_regression):
            if trained is not None and trained.names != SIGNAL_NAMES:
                raise InvalidOption(
                    "The regression was trained on other signals.", hint="Train it again."
                )

    def of(self, signals: Signals) -> float:
        """Compute the confidence in an answer with these signals, 0 to 1."""
        return _confidence(self.regression, signals)

    def with_agreement(self, confidence: float, agreement: float) -> float:
        """Combine a confidence with the agreement of the device's other answers, 0 to 1."""
        return (confidence + agreement) / 2

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


def _confidence(trained: LogisticRegression | None, signals: Signals) -> float:
    if trained is None:
        return float(sigmoid(np.array(signals.log_odds)))
    return float(trained.probability(signals.vector()[None])[0])
