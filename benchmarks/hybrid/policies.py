"""Score how sure an answer is: the client's confidence, and the baselines that it has to beat."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from benchmarks.hybrid.outcomes import Outcome
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.prompt_classifier import train_prompt_classifier
from edgesdk.hybrid.confidence.training import (
    ConfidenceProfile,
    LabelledDraft,
    fit_profile,
    train_signal_regression,
)

Floats = npt.NDArray[np.float64]
Score = Callable[[Sequence[Outcome]], Floats]
Fit = Callable[[Sequence[Outcome]], Score]


def right_of(outcomes: Sequence[Outcome]) -> npt.NDArray[np.bool_]:
    """Which answers were right, bool [n]."""
    return np.array([outcome.right for outcome in outcomes], bool)


def _random(_: Sequence[Outcome]) -> Score:
    return lambda outcomes: np.array(
        [zlib.crc32(outcome.key.encode()) / 2**32 for outcome in outcomes]
    )


def _prompt_length(_: Sequence[Outcome]) -> Score:
    """Short questions are easy."""
    return lambda outcomes: np.array([-float(len(outcome.question)) for outcome in outcomes])


def _family_prior(trained: Sequence[Outcome]) -> Score:
    """Share of right answers in the family; of all where the family is unknown."""
    seen = Counter(outcome.family for outcome in trained)
    right = Counter(outcome.family for outcome in trained if outcome.right)
    everywhere = right.total() / seen.total()
    return lambda outcomes: np.array(
        [
            (right[one.family] / seen[one.family]) if one.family in seen else everywhere
            for one in outcomes
        ]
    )


def _mean_log_probability(_: Sequence[Outcome]) -> Score:
    """The geometric mean of the tokens' probabilities."""
    return lambda outcomes: np.exp([outcome.signals.mean_log_probability for outcome in outcomes])


def _answer_probability(_: Sequence[Outcome]) -> Score:
    """What the client does where nothing was trained: the probability of the whole answer."""
    untrained = Confidence()
    return lambda outcomes: np.array([untrained.of(outcome.signals) for outcome in outcomes])


def _prompt_gate(trained: Sequence[Outcome]) -> Score:
    """What the client thinks of a prompt before it tries."""
    gate = train_prompt_classifier([(asked(outcome), outcome.right) for outcome in trained])
    return lambda outcomes: np.array([gate.probability(asked(outcome)) for outcome in outcomes])


def _signals(trained: Sequence[Outcome]) -> Score:
    """The logits alone."""
    regression = train_signal_regression(
        [outcome.signals for outcome in trained], [outcome.right for outcome in trained]
    )
    confidence = Confidence(regression)
    return lambda outcomes: np.array([confidence.of(outcome.signals) for outcome in outcomes])


def _signals_and_prompt(trained: Sequence[Outcome]) -> Score:
    """What the client does where it learned from answers of the model."""
    return _as_learned(
        fit_profile([LabelledDraft(asked(one), one.signals, one.right) for one in trained])
    )


def _with_probe(trained: Sequence[Outcome]) -> Score:
    """The same on an engine that gives hidden states."""
    return _as_learned(
        fit_profile(
            [LabelledDraft(asked(one), one.signals, one.right, one.hidden_state) for one in trained]
        )
    )


def _as_learned(learned: ConfidenceProfile) -> Score:
    confidence, probe = learned.confidence(), learned.probe

    def of(outcome: Outcome) -> float:
        prompt, state = learned.classifier.log_odds(asked(outcome)), outcome.hidden_state
        probed = 0.0 if probe is None or state is None else probe.log_odds(state)
        signals = replace(outcome.signals, prompt_log_odds=prompt, probe_log_odds=probed)
        return confidence.of(signals)

    return lambda outcomes: np.array([of(outcome) for outcome in outcomes])


def asked(outcome: Outcome) -> list[dict[str, str]]:
    """The question, without the examples and the instruction that all of its family have."""
    return [{"role": "user", "content": outcome.question}]


_PROBED = "signals, prompt, probe"
_POLICIES: dict[str, Fit] = {
    "random": _random,
    "prompt length": _prompt_length,
    "family prior": _family_prior,
    "mean log-probability": _mean_log_probability,
    "answer's probability": _answer_probability,
    "prompt gate": _prompt_gate,
    "signals": _signals,
    "signals and prompt": _signals_and_prompt,
    _PROBED: _with_probe,
}
# Those that a threshold is calibrated for.
_CALIBRATED = (
    "mean log-probability",
    "answer's probability",
    "signals",
    "signals and prompt",
    _PROBED,
)
# Those that are probabilities; of the others an order is all there is.
PROBABILITIES = frozenset({"family prior", "prompt gate", *_CALIBRATED})


def policies_for(outcomes: Sequence[Outcome]) -> dict[str, Fit]:
    """Those that can learn from these outcomes."""
    probed = all(outcome.state for outcome in outcomes)
    return {name: fit for name, fit in _POLICIES.items() if probed or name != _PROBED}


def calibrated_for(outcomes: Sequence[Outcome]) -> list[str]:
    """Of those the ones that a threshold is calibrated for."""
    return [name for name in policies_for(outcomes) if name in _CALIBRATED]
