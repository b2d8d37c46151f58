"""An engine is asked whether it computes the same logits together as one by one."""

from __future__ import annotations

import numpy.typing as npt

from edgesdk.engines.base import Logits, Rows
from edgesdk.generation.batched_verification import BatchedVerification, RecentLogits
from tests.support.fake_engine import FakeDecodeState, FakeEngine, fake_model

COUNT = "one two three four five six seven eight nine ten "


def test_logits_are_measured_once_for_a_span_of_lengths() -> None:
    engine = FakeEngine((2 * COUNT).encode())
    model = fake_model(engine)
    model.respond("Count twice.", speculate="auto")
    before = engine.states[0].extended
    model.respond("Count twice.", speculate="auto")

    assert engine.states[-1].extended.index(before[0]) == 0
    assert model.runtime.batched_verification.verdict(100) is True
    assert model.runtime.batched_verification.verdict(1000) is None


def test_tokens_that_lie_across_a_border_of_spans_are_not_trusted() -> None:
    engine = FakeEngine()
    state = engine.new_state()
    rows, check = RecentLogits(), BatchedVerification()
    for token in range(4, 14):
        rows.add(state.extend([token])[0])
    check.measure(state, state.tokens, rows)

    assert check.allows(0)
    assert check.allows(247)
    assert not check.allows(248)
    assert not check.allows(256)


def test_logits_are_compared_without_the_keys_that_single_steps_left_behind() -> None:
    """A kernel that reads a row before it wrote it finds what was there before."""

    class Careless(FakeDecodeState):
        def extend(self, tokens: npt.ArrayLike, *, logits: Rows = "last") -> Logits:
            stale = list(self._behind[len(self._tokens) :]) if logits == "each" else []
            rows = super().extend(tokens, logits=logits)
            self._behind = max(self._behind, tuple(self._tokens), key=len)
            return rows if logits != "each" or stale else rows + 1

        _behind: tuple[int, ...] = ()

        def fork(self) -> FakeDecodeState:
            twin = Careless(self._engine)
            twin._tokens = list(self._tokens)
            twin._behind = tuple(self._tokens)
            return twin

    state = Careless(FakeEngine())
    rows, check = RecentLogits(), BatchedVerification()
    for token in range(4, 14):
        rows.add(state.extend([token])[0])
    check.measure(state, state.tokens, rows)

    assert check.refuted
