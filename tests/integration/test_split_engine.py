"""Prompts on one device and answers on another: who computes what, and that nothing else is told.

That the answers are right is in test_engine_contract.py and, with two devices, in test_webgpu.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from tiny_onnx_bundle import VOCAB, write_tiny_bundle

from edgesdk.engines.onnx.decode_state import OnnxDecodeState
from edgesdk.engines.onnx.engine import OnnxEngine
from edgesdk.engines.onnx.split_engine import MIN_PREFILL, SplitEngine
from edgesdk.engines.registry import open_engine
from edgesdk.errors import EngineError
from edgesdk.system.cancellation import CancellationToken, Cancelled

pytestmark = pytest.mark.integration

IDS = np.random.default_rng(5).integers(0, VOCAB, 200).tolist()


def engine(folder: Path, seed: int = 0) -> OnnxEngine:
    path = folder / f"tiny-{seed}"
    bundle = write_tiny_bundle(path, seed=seed)
    return cast("OnnxEngine", open_engine(bundle, "cpu", threads=1))


@pytest.fixture
def prefill(tmp_path: Path) -> OnnxEngine:
    return engine(tmp_path / "a")


def test_long_calls_are_for_the_device_for_prompts(
    prefill: OnnxEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = OnnxDecodeState.extend

    def extend(self: OnnxDecodeState, tokens: list[int], **arguments: object) -> object:
        if self._decoder is prefill._decoder:
            asked.append(len(tokens))
        return original(self, tokens, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxDecodeState, "extend", extend)
    state = SplitEngine(prefill, engine(tmp_path / "b")).new_state()
    for count in (MIN_PREFILL - 1, MIN_PREFILL, 1, 8, MIN_PREFILL + 9):
        state.extend(IDS[:count])
    state.extend(IDS[:MIN_PREFILL], logits="each")
    assert asked == [MIN_PREFILL, MIN_PREFILL + 9]


def test_a_long_call_that_is_stopped_changes_nothing(prefill: OnnxEngine, tmp_path: Path) -> None:
    state = SplitEngine(prefill, engine(tmp_path / "b")).new_state()
    state.extend(IDS[:3])
    token = CancellationToken()
    token.cancel()
    with pytest.raises(Cancelled):
        state.extend(IDS[:100], cancellation=token)
    assert state.tokens == tuple(IDS[:3])


def test_engines_of_two_models_are_refused(prefill: OnnxEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="different models"):
        SplitEngine(prefill, engine(tmp_path / "b", seed=1))
