"""What the state that an answer ended in says of it: a linear probe (Alain and Bengio 2016,
arXiv:1610.01644).

Whether an answer is right can be read, in part, off the model's own hidden states (Kadavath et al.
2022, arXiv:2207.05221; Azaria and Mitchell 2023, arXiv:2304.13734). The state is the one behind the
last logits of the answer, so it costs no forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesdk.engines.base import HiddenStates
from edgesdk.errors import RequestError
from edgesdk.hybrid.confidence.regression import Folds, Matrix, out_of_fold, train_regression

# Directions of the most variance that are learned from. Chosen, as the penalty, on answers that are
# neither trained on nor reported, and on families that were left out of the training: with 64 the
# confidence gains a little more on what it knows, and loses on what it does not.
_COMPONENTS = 32
_PENALTY = 100.0
_MAX_LOG_ODDS = 9.0
_SAME = 1e-6


@dataclass(frozen=True)
class HiddenStateProbe:
    """Predicts from a hidden state whether the answer that ended in it is right.

    Attributes:
        weights: of its numbers; as many as the model's hidden size.
        bias: of the whole.

    Raises:
        RequestError: a number is not finite.
    """

    weights: tuple[float, ...]
    bias: float

    def __post_init__(self) -> None:
        if not np.isfinite([*self.weights, self.bias]).all():
            raise RequestError("This probe has a number that is not finite.", hint="Train again.")

    def log_odds(self, state: HiddenStates) -> float:
        """ln(p / (1 - p)) of an answer that ended in `state`, float32 [hidden]; within +-9.

        Raises:
            RequestError: the probe is of a model of another hidden size.
        """
        if state.shape != (len(self.weights),):
            raise RequestError(
                f"The probe is for {len(self.weights)} numbers, not {state.size}.",
                hint="Train it for this model.",
            )
        return float(self._log_odds(state[None])[0])

    def _log_odds(self, states: npt.NDArray[np.floating]) -> Matrix:
        odds: Matrix = states.astype(np.float64) @ np.array(self.weights) + self.bias
        return np.clip(odds, -_MAX_LOG_ODDS, _MAX_LOG_ODDS)


def train_probe(
    states: HiddenStates, right: npt.NDArray[np.bool_], folds: Folds
) -> tuple[HiddenStateProbe, Matrix]:
    """Train a probe on the states that answers of one model ended in.

    Args:
        states: float32 [n, hidden], finite.
        right: bool [n].
        folds: of the examples, [n]; see `edgesdk.hybrid.confidence.regression`.

    Returns:
        The probe, and what one that was trained on the others says of each example, float64 [n].

    Raises:
        RequestError: all are right, or all are wrong, also of those outside of one fold.
    """
    odds = out_of_fold(
        folds, lambda others, held: _train(states[others], right[others])._log_odds(states[held])
    )
    return _train(states, right), odds


def _train(states: HiddenStates, right: npt.NDArray[np.bool_]) -> HiddenStateProbe:
    """Fit a logistic regression on principal components, and join both to one linear map."""
    inputs = states.astype(np.float64)
    means, scales = inputs.mean(axis=0), inputs.std(axis=0)
    scales[scales < _SAME] = 1.0
    _, _, directions = np.linalg.svd((inputs - means) / scales, full_matrices=False)
    directions = directions[:_COMPONENTS]
    components = (inputs - means) / scales @ directions.T
    names = tuple(f"component {at}" for at in range(len(directions)))
    found = train_regression(names, components, right, penalty=_PENALTY)
    per_component = np.array(found.weights) / np.array(found.scales)
    weights = per_component @ directions / scales
    bias = found.bias - float(per_component @ np.array(found.means)) - float(weights @ means)
    return HiddenStateProbe(tuple(weights.tolist()), bias)
