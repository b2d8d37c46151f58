"""The signal of an answer that is dragged through its form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.fake_engine import FakeEngine, fake_model

from edgesdk.engines.base import Logits
from edgesdk.generation.loop import generate
from edgesdk.hybrid.confidence.signals import SIGNAL_NAMES, SignalMeter, Signals, forbidden_share
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
