"""How a prompt goes into a decode state: what may be reused, and in which chunks."""

from __future__ import annotations

import pytest

from edgesdk.generation.prefill import PREFILL_CHUNK, prefill, reusable_prefix
from tests.support.fake_engine import FakeEngine


@pytest.mark.parametrize("count", [2, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 1])
def test_no_chunk_is_of_one_token(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state = FakeEngine(context_length=4096).new_state()
    sizes: list[int] = []
    extend = state.extend
    monkeypatch.setattr(state, "extend", lambda ids: sizes.append(len(ids)) or extend(ids))
    prefill(state, [65] * count)
    assert sum(sizes) == count
    assert min(sizes) > 1


@pytest.mark.parametrize(
    ("held", "prompt", "step", "reused"),
    [
        ("abc", "abcd", 0, 3),
        ("abcd", "abcd", 0, 3),
        ("abc", "abcd", 1, 2),
        ("abcd", "abcd", 1, 2),
        ("abcd", "abxyz", 1, 2),
        ("a", "a", 1, 0),
        ("abcdefgh", "abcdefgh", 4, 4),
        ("abcdefgh", "abcdefghij", 4, 8),
    ],
)
def test_at_least_two_tokens_are_computed_where_one_rounds_otherwise(
    held: str, prompt: str, step: int, reused: int
) -> None:
    state = FakeEngine().new_state()
    state.extend(list(held.encode()))
    assert reusable_prefix(state, list(prompt.encode()), step) == reused
