"""The KV window's slots and masks against a list of all positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.rope import RopeSpec
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.npu.kv_window import KvWindow, fill_mask

SIZE = 8


def spec(windows: tuple[int | None, ...]) -> DecoderSpec:
    return DecoderSpec(
        family="llama",
        architecture="llama",
        vocab_size=10,
        hidden_size=4,
        intermediate_size=4,
        layers=len(windows),
        heads=1,
        kv_heads=1,
        head_size=2,
        context_length=1000,
        norm_eps=1e-5,
        rope=RopeSpec(10_000.0, 2),
        windows=windows,
        attention_scale=1.0,
        tied=True,
    )


def window(*windows: int | None) -> KvWindow:
    return KvWindow(spec(windows), StaticShape(prefill_tokens=4, window=SIZE, dtype="float32"))


def positions(start: int, count: int, layers: int = 1) -> np.ndarray:
    """Keys and values that are the positions themselves."""
    column = np.arange(start, start + count, dtype=np.float32)
    return np.broadcast_to(column[None, None, :, None], (2 * layers, 1, count, 2))


@settings(max_examples=200, deadline=None)
@given(
    start=st.integers(0, 40),
    rows=st.integers(1, 6),
    padding=st.integers(0, 5),
    reach=st.integers(1, SIZE + 1),
)
def test_a_token_sees_the_tokens_of_its_window_wherever_they_lie(start, rows, padding, reach):
    padding = min(padding, rows - 1)
    count = rows - padding
    held = window(reach)
    for position in range(start):
        held.write(position, positions(position, 1))
    mask = np.full((rows, SIZE + rows), 5.0, np.float32)
    fill_mask(mask, start, count, size=SIZE, window=reach, hidden=-9.0)
    assert set(np.unique(mask)) <= {-9.0, 0.0}
    for row in range(count):
        query = start + row
        seen = held.slots[0, 0, mask[padding + row, :SIZE] == 0, 0].tolist()
        new = np.flatnonzero(mask[padding + row, SIZE:] == 0) - padding + start
        assert sorted(seen + new.tolist()) == list(range(max(0, query - reach + 1), query + 1))
    # Padding sees itself alone, and nobody sees it.
    for row in range(padding):
        assert np.flatnonzero(mask[row] == 0).tolist() == [SIZE + row]
    assert (mask[padding:, SIZE : SIZE + padding] == -9.0).all()


def test_without_a_window_all_tokens_before_are_seen():
    mask = np.empty((1, SIZE + 1), np.float32)
    fill_mask(mask, 5, 1, size=SIZE, window=None, hidden=-1.0)
    assert mask[0].tolist() == [0] * 5 + [-1] * 3 + [0]


def test_a_rewind_that_lost_nothing_is_known_from_one_that_did():
    held = window(4, 3)
    held.write(0, positions(0, SIZE, layers=2))
    # Layers look at 3 tokens before a new one; 4 slots have been written over.
    held.write(SIZE, positions(SIZE, 4, layers=2))
    assert [length for length in range(SIZE + 5) if held.holds(length)] == [7, 8, 9, 10, 11, 12]


def test_a_layer_that_sees_all_needs_every_token():
    held = window(4, None)
    held.write(0, positions(0, SIZE, layers=2))
    assert all(held.holds(length) for length in range(SIZE + 1))
    held.write(SIZE, positions(SIZE, 1, layers=2))
    assert not held.holds(SIZE)


@pytest.mark.parametrize("length", [0, 3, SIZE, SIZE + 5])
def test_what_is_dumped_can_be_loaded(length):
    held, other = window(4), window(4)
    held.write(0, positions(0, length))
    payload = np.concatenate([part.reshape(-1) for part in held.dump(length)]).view(np.uint8)
    assert payload.size == held.bytes_of(length)
    other.load(payload, length)
    assert np.array_equal(other.slots, held.slots)
    assert other.end == held.end
