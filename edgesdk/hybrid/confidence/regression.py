"""Logistic regression: small enough to ship with a bundle and to train on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from edgesdk.errors import RequestError

Matrix = npt.NDArray[np.float64]

_STEPS = 50
_TOLERANCE = 1e-8
_SAME = 1e-9


@dataclass(frozen=True)
class LogisticRegression:
    """The probability of "right", from numbers.

    Attributes:
        names: of the features, in their order.
        means, scales: what a feature is centred and divided by.
        weights: of the features so scaled.
        bias: of the whole.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def probability(self, features: Matrix) -> Matrix:
        """float64 [n] from `features`, float64 [n, len(names)]."""
        scaled = (features - np.array(self.means)) / np.array(self.scales)
        return sigmoid(scaled @ np.array(self.weights) + self.bias)

    def to_json(self) -> dict[str, Any]:
        """For a JSON file; `regression_from` reads it."""
        return {
            "names": list(self.names),
            "means": list(self.means),
            "scales": list(self.scales),
            "weights": list(self.weights),
            "bias": self.bias,
        }


_STORED = TypeAdapter(LogisticRegression)


def regression_from(value: object) -> LogisticRegression:
    """What `LogisticRegression.to_json` gave.

    Raises:
        RequestError: it is not that.
    """
    try:
        found = _STORED.validate_python(value)
    except ValidationError as error:
        raise RequestError(f"This is no stored regression: {error.errors()[0]['msg']}.") from None
    numbers = [*found.means, *found.scales, *found.weights, found.bias]
    lengths = {len(found.names), len(found.means), len(found.scales), len(found.weights)}
    if len(lengths) != 1 or not np.isfinite(numbers).all() or 0 in found.scales:
        raise RequestError("This stored regression contradicts itself.", hint="Train it again.")
    return found


def train_regression(
    names: tuple[str, ...],
    features: Matrix,
    right: npt.NDArray[np.bool_],
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
