"""A gate that learned from what went right and wrong: does the device get prompts like this right?

Predictive routing by the prompt alone, as in Ong et al. 2024 (RouteLLM, arXiv:2406.18665), with
features that need no model. It trains in seconds on thousands of examples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, FiniteFloat, JsonValue, ValidationError

from edgesdk.errors import InvalidOption, RequestError
from edgesdk.hybrid.gate.features import NAMES, Messages, features
from edgesdk.hybrid.trust.folds import Folds, folds_of, unseen
from edgesdk.hybrid.trust.kept import Kept
from edgesdk.hybrid.trust.quality import auroc
from edgesdk.hybrid.trust.regression import LogisticRegression, Matrix, from_json, train
from edgesdk.text.prompts import Prompt, messages_of

# What it is kept as; see `edgesdk.hybrid.trust.kept`.
KEPT_AS = "prompts"
_LEAST_OF_EACH = 15
# More than for signals: there are three times as many features, most of them silent. Chosen, as
# those of `edgesdk.hybrid.trust.learning`, by the likelihood of answers that are neither trained on
# nor reported, and on families that were left out of the training (benchmarks/hybrid.py).
_PENALTY = 30.0
# A chance of 0 or 1 has no finite odds.
_SUREST = 1e-4


@dataclass(frozen=True)
class PromptGate:
    """The chance that the device's answer to a prompt would be right.

    Attributes:
        regression: over `edgesdk.hybrid.gate.features`.
        threshold: below it the device does not try.
        examples: that it was trained on.
        auroc: how well it told them apart, each judged by a regression that had not seen it: 0.5
            is a guess, 1 is always.
    """

    regression: LogisticRegression
    threshold: float
    examples: int
    auroc: float

    def chance(self, messages: Messages) -> float:
        """Between 0 and 1."""
        return float(self.regression.probability(features(messages)[None])[0])

    def log_odds(self, messages: Messages) -> float:
        """ln(p / (1 - p)) of the chance; a signal of the answer, beside those of its logits."""
        return _log_odds(np.array([self.chance(messages)]))[0]

    def keep(self, kept: Kept, bundle: str) -> None:
        """Store it for the model with this hash, whose clients then use it by themselves.

        Raises:
            RequestError: it cannot be written.
        """
        kept.write(
            bundle,
            KEPT_AS,
            {
                "regression": self.regression.to_json(),
                "threshold": self.threshold,
                "examples": self.examples,
                "auroc": self.auroc,
            },
        )


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    regression: JsonValue
    threshold: FiniteFloat
    examples: int
    auroc: FiniteFloat


def prompt_gate_from(value: JsonValue) -> PromptGate:
    """What `PromptGate.keep` stored.

    Raises:
        RequestError: it is none, or of other features.
    """
    try:
        stored = _Stored.model_validate(value)
    except ValidationError as error:
        raise RequestError(f"This is no stored prompt gate: {error.errors()[0]['msg']}.") from None
    regression = from_json(stored.regression)
    if regression.names != NAMES:
        raise RequestError("The prompt gate was trained on other features.", hint="Train it again.")
    return PromptGate(regression, stored.threshold, stored.examples, stored.auroc)


def train_prompts(examples: Iterable[tuple[Prompt, bool]], *, lost: float = 0.05) -> PromptGate:
    """Learn from prompts whose local answer was right or wrong.

    Args:
        lost: share of the prompts that the device gets right which may be given away without a
            try, as long as prompts are like these. Where prompts tell little, few of the wrong
            ones go too: the draft then decides.

    Raises:
        InvalidOption: `lost` is no share.
        RequestError: there are too few right or wrong ones.
    """
    return train_with_unseen(examples, lost=lost)[0]


def train_with_unseen(
    examples: Iterable[tuple[Prompt, bool]], *, lost: float
) -> tuple[PromptGate, list[float]]:
    """As `train_prompts`, and the `log_odds` of each prompt by a gate that was trained on the
    others, for what learns how much to make of it.

    Raises:
        InvalidOption, RequestError: see `train_prompts`.
    """
    if not 0 <= lost < 1:
        raise InvalidOption(f"lost must be at least 0 and below 1, not {lost}.")
    inputs, right, folds = _prepared(examples)
    scores = unseen(
        folds,
        lambda others, held: train(
            NAMES, inputs[others], right[others], penalty=_PENALTY
        ).probability(inputs[held]),
    )
    gate = PromptGate(
        train(NAMES, inputs, right, penalty=_PENALTY),
        float(np.quantile(scores[right], lost, method="lower")),
        len(right),
        auroc(scores, right),
    )
    return gate, _log_odds(scores)


def _prepared(
    examples: Iterable[tuple[Prompt, bool]],
) -> tuple[Matrix, npt.NDArray[np.bool_], Folds]:
    """Features [n, len(NAMES)], whether each was right [n], and its fold [n].

    Raises:
        RequestError: there are too few right or wrong ones.
    """
    pairs = [(messages_of(prompt), right) for prompt, right in examples]
    right = np.array([each for _, each in pairs], bool)
    if min(int(right.sum()), int((~right).sum())) < _LEAST_OF_EACH:
        raise RequestError(
            f"There are {int(right.sum())} prompts with a right answer and {int((~right).sum())}"
            " with a wrong one.",
            hint=f"Training a prompt gate needs at least {_LEAST_OF_EACH} of each.",
        )
    inputs = np.stack([features(messages) for messages, _ in pairs])
    return inputs, right, folds_of(messages for messages, _ in pairs)


def _log_odds(chances: Matrix) -> list[float]:
    inside = np.clip(chances, _SUREST, 1 - _SUREST)
    odds: list[float] = np.log(inside / (1 - inside)).tolist()
    return odds
