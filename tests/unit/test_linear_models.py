"""The logistic regression against an optimizer; and what a probe reads off hidden states."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_engine import FakeEngine, fake_model
from support.talking_cloud import TalkingCloud, said

from edgesdk.engines.base import HiddenStates
from edgesdk.errors import RequestError
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_from_json, value_to_json
from edgesdk.hybrid.confidence.confidence import TokenStats, signals_of
from edgesdk.hybrid.confidence.linear_models import (
    HiddenStateProbe,
    LogisticRegression,
    auroc,
    folds_of,
    out_of_fold,
    sigmoid,
    train_probe,
    train_regression,
)
from edgesdk.hybrid.confidence.training import LabelledDraft, fit_profile


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


BUNDLE = "00" * 32
HIDDEN = 96


def answered(count: int, seed: int) -> tuple[HiddenStates, np.ndarray]:
    """States of which one direction, among larger ones, tells right from wrong."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(12, HIDDEN))
    factors = rng.normal(size=(count, 12))
    states = factors @ mixing + 0.1 * rng.normal(size=(count, HIDDEN)) + 5
    right = rng.random(count) < 1 / (1 + np.exp(-3 * factors[:, 4]))
    return states.astype(np.float32), right


def reference_odds(states: np.ndarray, right: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """By torch's own decomposition and optimizer."""
    known = torch.tensor(states).double()
    mean, scale = known.mean(0), known.std(0, unbiased=False)
    values, vectors = torch.linalg.eigh(torch.cov(((known - mean) / scale).T, correction=0))
    directions = vectors[:, -32:] / values[-32:].sqrt()
    weights = torch.zeros(33, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def scored(rows: torch.Tensor) -> torch.Tensor:
        return (rows - mean) / scale @ directions @ weights[1:] + weights[0]

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        chances = torch.nn.functional.binary_cross_entropy_with_logits(
            scored(known), torch.tensor(right).double(), reduction="sum"
        )
        total = chances + 50 * weights[1:].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return scored(torch.tensor(fresh).double()).detach().numpy()


def test_a_probe_is_a_regression_on_principal_components() -> None:
    states, right = answered(400, 1)
    fresh, truth = answered(500, 2)
    probe, _ = train_probe(states, right, np.arange(400) % 5)
    odds = np.array([probe.log_odds(state) for state in fresh])
    np.testing.assert_allclose(odds, reference_odds(states, right, fresh), atol=1e-3)
    assert auroc(odds, truth) > 0.85


def test_nobody_is_judged_by_himself() -> None:
    prompts = [[{"role": "user", "content": f"{number % 30}"}] for number in range(90)]
    folds = folds_of(prompts)
    assert (folds[:30] == folds[30:60]).all()
    trained = out_of_fold(folds, lambda others, held: np.full(held.sum(), others.sum()))
    assert (trained == [90 - (folds == fold).sum() for fold in folds]).all()
    # States of noise tell nothing, and are not believed to.
    noise = np.random.default_rng(3).normal(size=(100, HIDDEN)).astype(np.float32)
    right = np.random.default_rng(4).random(100) < 0.5
    probe, odds = train_probe(noise, right, np.arange(100) % 5)
    seen = np.array([probe.log_odds(state) for state in noise])
    assert auroc(seen, right) > 0.7
    assert auroc(odds, right) < 0.6


def test_few_examples_and_constant_numbers() -> None:
    states, right = answered(40, 5)
    states[:, 3] = 7
    probe, odds = train_probe(states, right, np.arange(40) % 5)
    assert len(probe.weights) == HIDDEN
    assert np.isfinite(odds).all()
    assert abs(probe.log_odds(1e6 * np.ones(HIDDEN, np.float32))) <= 9
    with pytest.raises(RequestError, match="96 numbers, not 4"):
        probe.log_odds(np.zeros(4, np.float32))
    with pytest.raises(RequestError, match="All 32 examples are right"):
        train_probe(states, np.ones(40, bool), np.arange(40) % 5)


@pytest.mark.parametrize("bad", [None, {}, {"weights": ["x"], "bias": 0}, {"weights": [1]}])
def test_what_is_no_probe(bad: Any) -> None:
    with pytest.raises(RequestError, match="no stored HiddenStateProbe"):
        value_from_json(HiddenStateProbe, bad)
    with pytest.raises(RequestError, match="not finite"):
        value_from_json(HiddenStateProbe, {"weights": [float("nan")], "bias": 0.0})


class Feeling(FakeEngine):
    """Its states say how long the sequence is."""

    def hidden_state(self, tokens: list[int]) -> HiddenStates:
        state = np.zeros(HIDDEN, np.float32)
        state[0] = len(tokens)
        return state


def examples(count: int, *, states: bool = True) -> list[LabelledDraft]:
    found, right = answered(count, 6)
    return [
        LabelledDraft(
            f"What is {at} + {at % 7}?",
            signals_of([TokenStats(1, -0.5, 0.5, 1.0)]),
            bool(right[at]),
            found[at] if states else None,
        )
        for at in range(count)
    ]


def test_the_probe_has_its_part_in_the_confidence() -> None:
    known = examples(400)
    learned = fit_profile(known)
    assert learned.probe is not None
    odds = np.array([learned.probe.log_odds(each.hidden_state) for each in known])
    vectors = [
        replace(e.signals, probe_log_odds=o).vector() for e, o in zip(known, odds, strict=True)
    ]
    right = [each.right for each in known]
    assert auroc(learned.regression.probability(np.array(vectors)), right) > 0.85
    # One without a state: then nobody may have one, or it would count for those alone.
    without = fit_profile([*known[:-1], replace(known[-1], hidden_state=None)])
    assert without.probe is None
    assert without == fit_profile(examples(400, states=False))


def test_a_client_probes_the_state_that_its_answer_ends_in(tmp_path: Path) -> None:
    artifacts = ArtifactStore(tmp_path)
    fit_profile(examples(400), max_false_rejections=0.0).save(artifacts, BUNDLE, threshold=0.0)
    prompts = {}
    for engine in (Feeling(), FakeEngine()):
        with (
            TalkingCloud(lambda body: said("The cloud's.")) as cloud,
            HybridClient(fake_model(engine), cloud=cloud.cloud(), profile=tmp_path) as client,
        ):
            local = client.respond("What is 3 + 4?", prefer="local").local
            assert local is not None
            prompts[type(engine)] = local
            probe = client.guarantee.confidence.probe
    felt, unfelt = prompts[Feeling], prompts[FakeEngine]
    assert unfelt.hidden_state is None
    assert unfelt.signals.probe_log_odds == 0
    # The logits that chose the end came after the whole answer.
    length = felt.receipt.prompt_tokens + felt.receipt.output_tokens
    assert felt.hidden_state[0] == length
    assert probe is not None
    assert felt.signals.probe_log_odds == probe.log_odds(felt.hidden_state)


def test_a_probe_is_kept_and_forgotten_with_its_regression(tmp_path: Path) -> None:
    artifacts = ArtifactStore(tmp_path)
    with_probe, without = fit_profile(examples(400)), fit_profile(examples(400, states=False))
    for learned in (with_probe, without):
        learned.save(artifacts, BUNDLE)
        with (
            TalkingCloud(lambda body: said("The cloud's.")) as cloud,
            HybridClient(fake_model(FakeEngine()), cloud=cloud.cloud(), profile=tmp_path) as client,
        ):
            assert client.guarantee.confidence.probe == learned.probe
            assert client.guarantee.confidence.regression == learned.regression
    assert isinstance(with_probe.probe, HiddenStateProbe)
