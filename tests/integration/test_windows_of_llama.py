"""GGUF models with sliding windows: a KV cache that was copied, saved or moved can be rewound past
the window, and then gives the numbers of a new one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.tiny_models import make_tiny

from edgesdk.engines.base import DecodeState, Engine
from edgesdk.engines.gguf import native_model
from edgesdk.engines.gguf.separate_caches import MAX_CONTEXTS
from edgesdk.engines.registry import open_engine
from edgesdk.generation.prefill import prefill

pytest.importorskip("llama_cpp")
from support.tiny_ggufs import write_tiny_gguf

pytestmark = pytest.mark.integration

WINDOW = 64
# A step past a slice, and past one growth of the cache.
LENGTHS = (300, native_model.FIRST_CELLS + 77)
IDS = np.random.default_rng(0).integers(3, 256, max(LENGTHS)).tolist()


# Where answers would share batches, a windowed model still gets caches of its own.
@pytest.fixture(scope="module", params=[("gemma2", True), ("gemma3", True), ("gemma3", False)])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    variant, batch_invariant = request.param
    folder = tmp_path_factory.mktemp("windowed")
    sizes = {"sliding_window": WINDOW, "max_position_embeddings": 2048, "num_hidden_layers": 2}
    write_tiny_gguf(make_tiny(variant, folder / "hf", **sizes), folder / "tiny.gguf")
    opened = open_engine(
        folder / "tiny.gguf", threads=1, context=2048, batch_invariant=batch_invariant
    )
    assert opened.info.batch_invariant
    yield opened
    opened.close()


def computed_again(state: DecodeState, cut: int, length: int) -> list[np.ndarray]:
    """Logits after the first `length` ids, and of the next step, where `cut` of them are kept."""
    state.rewind(cut)
    return [prefill(state, IDS[cut:length]).copy(), state.extend([7]).copy()]


@pytest.mark.parametrize("length", LENGTHS)
def test_rewound_past_the_window(engine: Engine, length: int, tmp_path: Path) -> None:
    wanted = computed_again(engine.new_state(), 0, length)
    state = engine.new_state()
    prefill(state, IDS[:length])
    state.save(tmp_path / "saved")
    restored = engine.new_state()
    restored.restore(tmp_path / "saved")
    ways = {"itself": state, "fork": state.fork(), "restored": restored, "twice": restored.fork()}
    for cut in (length // 64 * 64, 128, 64):
        for way, one in ways.items():
            assert all(map(np.array_equal, computed_again(one, cut, length), wanted)), (way, cut)


def test_parked_while_others_are_computed(engine: Engine) -> None:
    wanted = computed_again(engine.new_state(), 0, LENGTHS[0])
    states = [engine.new_state() for _ in range(MAX_CONTEXTS + 2)]
    for state in states:
        prefill(state, IDS[: LENGTHS[0]])
    for cut in (128, 256):
        for state in states:
            assert all(map(np.array_equal, computed_again(state, cut, LENGTHS[0]), wanted))
