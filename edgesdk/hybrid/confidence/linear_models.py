"""Logistic regression, small enough to ship with a bundle and to train on a phone, also on a
model's hidden states; and how good it is on examples that it was not trained on.

What learns from the output of another model must see it as it will be later: on examples that the
other one has not seen (stacked generalization, Wolpert, 1992).

Whether an answer is right can be read, in part, off the model's own hidden states (Alain and Bengio
2016, arXiv:1610.01644; Kadavath et al. 2022, arXiv:2207.05221; Azaria and Mitchell 2023,
arXiv:2304.13734). The state is the one behind the last logits of the answer, so it costs no forward
pass.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.engines.base import HiddenStates
from edgesdk.errors import InvalidOption, RequestError

Matrix = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Folds = npt.NDArray[np.int_]
Numbers = Sequence[float] | Matrix
Flags = Sequence[bool] | Mask

_STEPS = 50
_TOLERANCE = 1e-8
_SAME = 1e-9


@dataclass(frozen=True)
class LogisticRegression:
    """Predicts the probability of "right" from features.

    Attributes:
        names: of the features, in their order.
        means, scales: what a feature is centred and divided by.
        weights: of the features so scaled.
        bias: of the whole.

    Raises:
        RequestError: there are not as many of each, a number is not finite, or a scale is 0.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def __post_init__(self) -> None:
        numbers = [*self.means, *self.scales, *self.weights, self.bias]
        lengths = {len(self.names), len(self.means), len(self.scales), len(self.weights)}
        if len(lengths) != 1 or not np.isfinite(numbers).all() or 0 in self.scales:
            raise RequestError("This regression contradicts itself.", hint="Train it again.")

    def probability(self, features: Matrix) -> Matrix:
        """Predict float64 [n] from `features`, float64 [n, len(names)]."""
        scaled = (features - np.array(self.means)) / np.array(self.scales)
        return sigmoid(scaled @ np.array(self.weights) + self.bias)


def train_regression(
    names: tuple[str, ...],
    features: Matrix,
    right: Mask,
    *,
    penalty: float | Sequence[float] = 1.0,
) -> LogisticRegression:
    """Fit by iteratively reweighted least squares (Hastie, Tibshirani, Friedman, "The Elements of
    Statistical Learning", section 4.4.1).

    Args:
        features: float64 [n, len(names)], finite.
        right: bool [n].
        penalty: of the squared weights, bias excepted; it also keeps separable data finite. One
            for all features, or one for each.

    Raises:
        RequestError: there is nothing to tell apart: all are right, or all are wrong.
    """
    if right.all() or not right.any():
        raise RequestError(
            f"All {len(right)} examples are {'right' if right.all() else 'wrong'}.",
            hint="Training needs some of each.",
        )
    means = features.mean(axis=0)
    scales = features.std(axis=0)
    # What differs in its last digits only is no feature: divided by so little, the next one that
    # differs for a reason would be beyond all others.
    scales[scales <= _SAME * (1 + np.abs(means))] = 1.0
    inputs = np.column_stack([np.ones(len(features)), (features - means) / scales])
    # So little that an all-right direction of the bias still has an end.
    ridge = np.concatenate([[1e-6], np.broadcast_to(penalty, len(names))])
    weights = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        chance = sigmoid(inputs @ weights)
        slope = inputs.T @ (right - chance) - ridge * weights
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        # Newton's method may overshoot far from the optimum.
        weights = weights + step / max(1.0, float(np.abs(step).max()) / 4)
        if np.abs(step).max() < _TOLERANCE:
            break
    return LogisticRegression(
        names, tuple(means.tolist()), tuple(scales.tolist()), tuple(weights[1:].tolist()),
        float(weights[0]),
    )  # fmt: skip


def sigmoid(values: Matrix) -> Matrix:
    """1 / (1 + e^-x), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))


_FOLDS = 5


def folds_of(prompts: Iterable[Sequence[Mapping[str, Any]]]) -> Folds:
    """Assign a fold to each prompt, [n]; equal prompts share one, so that none predicts itself."""
    return np.array([zlib.crc32(json.dumps(each).encode()) % _FOLDS for each in prompts])


def out_of_fold(folds: Folds, judged: Callable[[Mask, Mask], Matrix]) -> Matrix:
    """Predict each example by a model that was trained on the other folds, float64 [n].

    Args:
        judged: called with which examples to train on and which to judge, bool [n] each; gives
            one number for each of the latter.
    """
    found = np.empty(len(folds))
    for fold in np.unique(folds):
        held = folds == fold
        found[held] = judged(~held, held)
    return found


def auroc(confidences: Numbers, right: Flags) -> float:
    """Compute the probability that a right answer has a higher confidence than a wrong one, ties
    counted half.

    The area under the ROC curve, by ranks (Hanley and McNeil 1982, doi:10.1148/radiology.143.1).

    Returns:
        0 to 1, where 0.5 is no better than chance.
    """
    scores, flags = checked_lengths(confidences, right)
    rights = int(flags.sum())
    wrongs = len(flags) - rights
    if not rights or not wrongs:
        raise InvalidOption("An order of right and wrong answers needs some of each.")
    _, places, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    # The mean rank of each group of equal scores, from 1.
    ranks = np.cumsum(sizes) - (sizes - 1) / 2
    total = float(ranks[places][flags].sum())
    return (total - rights * (rights + 1) / 2) / (rights * wrongs)


def checked_lengths(confidences: Numbers, right: Flags) -> tuple[Matrix, Mask]:
    """Return both as arrays [n]; raises InvalidOption where they do not go together."""
    scores, flags = np.asarray(confidences, np.float64), np.asarray(right, np.bool_)
    if scores.shape != flags.shape or scores.ndim != 1:
        raise InvalidOption(f"There are {scores.size} confidences but {flags.size} labels.")
    if not np.isfinite(scores).all():
        raise InvalidOption("A confidence is not a finite number.")
    return scores, flags


# Directions of the most variance that are learned from. Chosen, as the penalty, on answers that are
# neither trained on nor reported, and on families that were left out of the training: with 64 the
# confidence gains a little more on what it knows, and loses on what it does not.
_COMPONENTS = 32
_PROBE_PENALTY = 100.0
_MAX_LOG_ODDS = 9.0
_SAME_STATE = 1e-6


@dataclass(frozen=True)
class HiddenStateProbe:
    """Predicts from a hidden state whether the answer that ended in it is right.

    Attributes:
        weights: as many as the model's hidden size.
    """

    weights: tuple[float, ...]
    bias: float

    def __post_init__(self) -> None:
        if not np.isfinite([*self.weights, self.bias]).all():
            raise RequestError("This probe has a number that is not finite.", hint="Train again.")

    def log_odds(self, state: HiddenStates) -> float:
        """ln(p / (1 - p)) of an answer that ended in `state`, float32 [hidden]; within +-9."""
        if state.shape != (len(self.weights),):
            raise RequestError(
                f"The probe is for {len(self.weights)} numbers, not {state.size}.",
                hint="Train it for this model.",
            )
        return float(self._log_odds(state[None])[0])

    def _log_odds(self, states: npt.NDArray[np.floating]) -> Matrix:
        odds: Matrix = states.astype(np.float64) @ np.array(self.weights) + self.bias
        return np.clip(odds, -_MAX_LOG_ODDS, _MAX_LOG_ODDS)


def train_probe(states: HiddenStates, right: Mask, folds: Folds) -> tuple[HiddenStateProbe, Matrix]:
    """Train a probe on the states that answers of one model ended in.

    Args:
        states: float32 [n, hidden], finite.
        right: bool [n].
        folds: of the examples, [n]; see `edgesdk.hybrid.confidence.linear_models`.

    Returns:
        The probe, and what one that was trained on the others says of each example, float64 [n].

    Raises:
        RequestError: all are right, or all are wrong, also of those outside of one fold.
    """
    odds = out_of_fold(
        folds,
        lambda others, held: _fit_probe(states[others], right[others])._log_odds(states[held]),
    )
    return _fit_probe(states, right), odds


def _fit_probe(states: HiddenStates, right: Mask) -> HiddenStateProbe:
    """Fit a logistic regression on principal components, and join both to one linear map."""
    inputs = states.astype(np.float64)
    means, scales = inputs.mean(axis=0), inputs.std(axis=0)
    scales[scales < _SAME_STATE] = 1.0
    _, _, directions = np.linalg.svd((inputs - means) / scales, full_matrices=False)
    directions = directions[:_COMPONENTS]
    components = (inputs - means) / scales @ directions.T
    names = tuple(f"component {at}" for at in range(len(directions)))
    found = train_regression(names, components, right, penalty=_PROBE_PENALTY)
    per_component = np.array(found.weights) / np.array(found.scales)
    weights = per_component @ directions / scales
    bias = found.bias - float(per_component @ np.array(found.means)) - float(weights @ means)
    return HiddenStateProbe(tuple(weights.tolist()), bias)
