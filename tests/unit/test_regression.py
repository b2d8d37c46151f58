"""The logistic regression against an optimizer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from edgesdk.errors import RequestError
from edgesdk.hybrid.confidence.artifacts import value_from_json, value_to_json
from edgesdk.hybrid.confidence.regression import LogisticRegression, sigmoid, train_regression


def test_training_finds_the_optimum() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3)) * [1, 10, 0.1] + [0, 5, -2]
    truth = sigmoid((features - [0, 5, -2]) / [1, 10, 0.1] @ np.array([2.0, -1.0, 0.5]) + 0.3)
    right = rng.random(300) < truth
    found = train_regression(("a", "b", "c"), features, right)

    scaled = torch.tensor((features - features.mean(0)) / features.std(0))
    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, tolerance_grad=1e-10)
    target = torch.tensor(right, dtype=torch.float64)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            scaled @ weights + bias, target, reduction="sum"
        )
        value = value + 0.5 * (weights**2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    np.testing.assert_allclose(found.weights, weights.detach().numpy(), atol=1e-4)
    assert found.bias == pytest.approx(float(bias.detach()), abs=1e-3)
    again = value_from_json(LogisticRegression, json.loads(json.dumps(value_to_json(found))))
    np.testing.assert_array_equal(again.probability(features), found.probability(features))


def test_a_penalty_for_each_feature_is_that_of_an_optimizer() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(80, 2))
    right = rng.random(80) < sigmoid(features @ np.array([1.5, 1.5]))
    penalties = [0.5, 200.0]
    found = train_regression(("free", "held"), features, right, penalty=penalties)

    scaled = (features - features.mean(0)) / features.std(0)
    error = right - sigmoid(scaled @ np.array(found.weights) + found.bias)
    # At the optimum the slope of the likelihood is that of the penalty.
    np.testing.assert_allclose(scaled.T @ error, np.array(penalties) * found.weights, atol=1e-5)
    assert abs(found.weights[0]) > 5 * abs(found.weights[1])


def test_separable_data_and_constant_features_end_finite() -> None:
    features = np.column_stack([np.arange(20.0), np.ones(20)])
    found = train_regression(("x", "one"), features, np.arange(20) > 9)
    assert np.isfinite(found.weights).all()
    assert ((found.probability(features) > 0.5) == (np.arange(20) > 9)).all()


def test_what_differs_in_its_last_digits_is_no_feature() -> None:
    rng = np.random.default_rng(1)
    telling = rng.normal(size=200)
    rounded = 0.3 + 1e-16 * rng.integers(-3, 4, 200)
    found = train_regression(
        ("telling", "rounded"), np.column_stack([telling, rounded]), telling > 0
    )
    # Later it differs for a reason, of which nothing was learned.
    chances = found.probability(np.array([[0.5, 0.3], [0.5, 0.4], [-0.5, 0.3], [-0.5, 0.2]]))
    assert chances[0] > 0.8
    assert chances[1] == pytest.approx(chances[0])
    assert chances[2] < 0.2
    assert chances[3] == pytest.approx(chances[2])


def test_what_cannot_be_trained_or_read_is_refused() -> None:
    with pytest.raises(RequestError, match="All 3 examples are right"):
        train_regression(("x",), np.zeros((3, 1)), np.ones(3, bool))
    good: Any = value_to_json(
        train_regression(("x",), np.arange(4.0)[:, None], np.array([False, True, False, True]))
    )
    for bad in ({}, None, {**good, "weights": [1, 2]}, {**good, "scales": [0]}):
        with pytest.raises(RequestError):
            value_from_json(LogisticRegression, bad)
