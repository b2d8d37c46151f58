"""What a probe reads off hidden states, and what becomes of it."""

from __future__ import annotations

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
from edgesdk.hybrid.confidence.artifacts import ArtifactStore, value_from_json
from edgesdk.hybrid.confidence.probe import HiddenStateProbe, train_probe
from edgesdk.hybrid.confidence.regression import auroc, folds_of, out_of_fold
from edgesdk.hybrid.confidence.signals import TokenStats, signals_of
from edgesdk.hybrid.confidence.training import LabelledDraft, fit_profile

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
