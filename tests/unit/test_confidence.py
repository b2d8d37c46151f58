"""Signals against their definitions, also of an answer that its output format constrains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.fake_engine import FakeEngine, fake_model

from edgesdk.engines.base import Logits
from edgesdk.generation.loop import generate
from edgesdk.hybrid.confidence.confidence import (
    SIGNAL_NAMES,
    Confidence,
    SignalMeter,
    Signals,
    TokenStats,
    forbidden_share,
    log_odds,
    repetition,
    signals_of,
)
from edgesdk.hybrid.confidence.linear_models import HiddenStateProbe
from edgesdk.options import Options


@given(
    arrays(np.float32, 12, elements=st.floats(-30, 30, width=32)),
    arrays(np.bool_, 12),
)
def test_the_share_is_that_of_the_softmax(row: Logits, allowed: np.ndarray) -> None:
    if not allowed.any():
        return
    masked = np.where(allowed, row, -np.inf).astype(np.float32)
    chances = torch.softmax(torch.tensor(row, dtype=torch.float64), 0).numpy()
    assert forbidden_share(row, masked) == pytest.approx(chances[~allowed].sum(), abs=1e-5)


class Only:
    """Implements `Constraint`: one written answer of bytes."""

    def __init__(self, answer: bytes) -> None:
        self._left = list(answer)

    def masked(self, logits: Logits) -> Logits:
        masked = np.full_like(logits, -np.inf)
        masked[self._left[0]] = logits[self._left[0]]
        return masked

    def accept(self, token: int) -> None:
        assert token == self._left.pop(0)

    @property
    def complete(self) -> bool:
        return not self._left

    finished = complete


def signals(wanted: bytes, form: bytes | None) -> Signals:
    """Of an answer of a model that wants to say one thing, held to another."""
    runtime = fake_model(FakeEngine(wanted)).runtime
    meter = SignalMeter()
    answer = generate(
        runtime.engine.new_state(),
        runtime.encoder.chat([{"role": "user", "content": "Hi"}]),
        runtime.encoder.tokenizer,
        Options(),
        info=runtime.engine.info,
        constraint=None if form is None else meter.observe(Only(form)),
        on_step=meter.update,
    )
    text = "".join(step.text for step in answer)
    assert text == (wanted if form is None else form).decode()
    found = meter.signals()
    assert found is not None
    return found


def test_a_model_that_is_dragged_through_its_form_shows() -> None:
    # The fake engine gives its own token a probability of 0.39, and those far from it none.
    assert signals(b"yes", None).forbidden == 0
    assert signals(b"yes", b"yes").forbidden == pytest.approx(0.61, abs=0.01)
    dragged = signals(b"yes", b"nil")
    assert dragged.forbidden > 0.9
    assert dragged.forbidden == dragged.vector()[SIGNAL_NAMES.index("forbidden")]


@given(arrays(np.float32, (4, 9), elements=st.floats(-20, 20, width=32)))
def test_signals_are_what_they_say(rows: np.ndarray) -> None:
    meter = SignalMeter(1.25, HiddenStateProbe((2.0, -1.0), 0.5))
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


def test_an_untrained_confidence_is_the_probability_of_the_whole_answer() -> None:
    def steps(*probabilities: float) -> list[TokenStats]:
        return [TokenStats(i, math.log(p), 0.0, 0.0) for i, p in enumerate(probabilities)]

    untrained = Confidence()
    assert untrained.of(signals_of(steps(0.9, 0.8))) == pytest.approx(0.72)
    # A long answer looks sure token by token, and is not sure as a whole.
    long = signals_of(steps(*[0.97] * 40))
    assert math.exp(long.mean_log_probability) == pytest.approx(0.97)
    assert untrained.of(long) == pytest.approx(0.97**40)
    assert untrained.of(signals_of(steps(0.9))) > untrained.threshold > untrained.of(long)
    # What is given up under way could not have been kept.
    assert untrained.abort_below < untrained.threshold
    assert untrained.predicts_wrong(signals_of(steps(*[0.5] * 24)))
