"""Signals against their definitions, the regression against an optimizer, the promise by trial."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgesdk.errors import InvalidOption, RequestError
from edgesdk.hybrid.confidence.probe import Probe
from edgesdk.hybrid.confidence.regression import regression_from, sigmoid, train_regression
from edgesdk.hybrid.confidence.signals import (
    SIGNAL_NAMES,
    SignalMeter,
    Signals,
    TokenStats,
    log_odds,
    repetition,
    signals_of,
)
from edgesdk.hybrid.confidence.threshold import binomial_tail, calibrate
from edgesdk.hybrid.confidence.training import train_signal_regression


@given(arrays(np.float32, (4, 9), elements=st.floats(-20, 20, width=32)))
def test_signals_are_what_they_say(rows: np.ndarray) -> None:
    meter = SignalMeter(1.25, Probe((2.0, -1.0), 0.5))
    assert meter.signals() is None
    tokens = [0, 3, 8, 3]
    for at, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        meter.update(row, token, np.array([at, 1], np.float32))
    logs = torch.log_softmax(torch.tensor(rows, dtype=torch.float64), -1)
    chosen = logs[torch.arange(4), torch.tensor(tokens)].numpy()
    entropies = torch.distributions.Categorical(logits=torch.tensor(rows).double()).entropy()
    ordered = np.sort(rows, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    found = meter.signals()
    assert found is not None
    wanted = [
        entropies[0], chosen[0], chosen.mean(), chosen.min(), np.quantile(chosen, 0.1),
        margins.mean(), margins.min(), entropies.mean(), 0.0, 4.0,
        chosen.sum() - np.log1p(-np.exp(min(chosen.sum(), -1e-6))), 0.0, 1.25,
        2 * 3 - 1 + 0.5,
    ]  # fmt: skip
    np.testing.assert_allclose(found.vector(), np.array(wanted, float), atol=1e-4)
    assert len(SIGNAL_NAMES) == len(wanted)


@pytest.mark.parametrize(
    ("log_probability", "wanted"),
    [(np.log(0.5), 0.0), (np.log(0.9), np.log(9)), (-800.0, -800.0), (0.0, 6 * np.log(10))],
)
def test_odds_of_an_answer_stay_finite(log_probability: float, wanted: float) -> None:
    assert log_odds(log_probability) == pytest.approx(wanted, abs=1e-5)


def test_banned_tokens_do_not_count() -> None:
    meter = SignalMeter()
    meter.update(np.array([1.0, -np.inf, 1.0], np.float32), 0)
    found = meter.signals()
    assert found is not None
    assert found.first_entropy == pytest.approx(np.log(2))


def test_repetition_counts_what_came_before() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([7] * 13) == pytest.approx(0.9)
    assert repetition(range(50)) == 0.0


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
    again = regression_from(json.loads(json.dumps(found.to_json())))
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


def test_few_examples_leave_the_odds_of_the_answer_as_they_are() -> None:
    rng = np.random.default_rng(5)

    def answers(number: int) -> tuple[list[Signals], list[bool]]:
        logs = -rng.exponential(0.4, size=(number, 3))
        signals = [
            signals_of(
                [
                    TokenStats(i, float(log), float(rng.exponential()), 1.0)
                    for i, log in enumerate(row)
                ]
            )
            for row in logs
        ]
        return signals, (rng.random(number) < np.exp(logs.sum(axis=1))).tolist()

    signals, right = answers(40)
    found = train_signal_regression(signals, right)
    assert found.names == SIGNAL_NAMES
    seen, truth = answers(4000)
    chances = found.probability(np.array([each.vector() for each in seen]))
    odds = np.array([each.log_odds for each in seen])
    assert np.corrcoef(np.argsort(np.argsort(chances)), np.argsort(np.argsort(odds)))[0, 1] > 0.9
    assert abs(float(chances.mean()) - float(np.mean(truth))) < 0.2
    with pytest.raises(RequestError, match="All 0 examples"):
        train_signal_regression([], [])


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
    good = train_regression(
        ("x",), np.arange(4.0)[:, None], np.array([False, True, False, True])
    ).to_json()
    for bad in ({}, None, {**good, "weights": [1, 2]}, {**good, "scales": [0]}):
        with pytest.raises(RequestError):
            regression_from(bad)


@pytest.mark.parametrize(("most", "trials", "chance"), [(0, 14, 0.2), (3, 40, 0.1), (40, 40, 0.3)])
def test_the_tail_is_exact(most: int, trials: int, chance: float) -> None:
    binomial = torch.distributions.Binomial(trials, torch.tensor(chance, dtype=torch.float64))
    wanted = binomial.log_prob(torch.arange(most + 1).double()).exp().sum()
    assert binomial_tail(most, trials, chance) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("skill", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("base", [-0.5, 1.0])
def test_the_promise_is_kept(skill: float, base: float) -> None:
    """The true error among the kept exceeds alpha in at most 5% of the draws of 100 labels."""
    rng = np.random.default_rng(1)
    confidence = rng.normal(size=50_000)
    right = rng.random(confidence.size) < sigmoid(skill * confidence + base)
    violations = promises = 0
    for _ in range(100):
        drawn = rng.integers(0, confidence.size, 100)
        found = calibrate(confidence[drawn].tolist(), right[drawn].tolist())
        if found.threshold is not None:
            promises += 1
            kept = confidence >= found.threshold
            violations += bool((~right[kept]).mean() > 0.2)
    # Of 100 trials at 5% each, more than 12 come out in less than one test of a thousand.
    assert violations <= 12
    if skill == 3.0 and base == 1.0:
        assert promises > 90


def test_ties_are_kept_together() -> None:
    found = calibrate([0.5] * 60, [True] * 55 + [False] * 5)
    assert (found.threshold, found.kept, found.wrong) == (0.5, 60, 5)
    assert "60 of 60, of which 5 were wrong" in found.phrase()


def test_it_says_when_there_are_too_few_labels() -> None:
    found = calibrate([0.9, 0.8, 0.7], [True, True, True])
    assert found.threshold is None
    assert found.missing is not None
    assert 10 < found.missing < 300
    assert "more might" in found.phrase()
    more = 3 + found.missing
    assert calibrate([i / more for i in range(more)], [True] * more).threshold is not None
    none = calibrate([], [])
    assert (none.threshold, none.missing) == (None, pytest.approx(74, abs=30))


def test_it_says_when_no_number_of_labels_helps() -> None:
    found = calibrate([i / 100 for i in range(100)], [i % 2 == 0 for i in range(100)])
    assert (found.threshold, found.missing) == (None, None)
    assert "more would not" in found.phrase()


@pytest.mark.parametrize(
    ("scores", "labels", "alpha"),
    [([0.1], [True, False], 0.2), ([0.1], [True], 0.0), ([float("nan")], [True], 0.2)],
)
def test_bad_input(scores: list[float], labels: list[bool], alpha: float) -> None:
    with pytest.raises(InvalidOption):
        calibrate(scores, labels, alpha=alpha)
