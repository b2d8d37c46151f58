"""Decoders with written blocks: what they lose, and what their parts compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise import compare
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint, LayerwiseOnnxModel
from edgesdk_export.selftest.logits import onnx_logits
from edgesdk_export.weights import Decoder
from support.tiny_models import VOCAB_SIZE


def divergence(reference: Decoder, folder: Path) -> float:
    """Mean KL divergence of the model in a folder from a decoder, on random tokens."""
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (4, 32))
    written = LayerwiseOnnxModel(reference.spec, folder / "model.onnx")
    found = compare(LayerwiseCheckpoint(reference), written, Windows(ids), progress=lambda *_: None)
    return float(found.kl.mean())


def assert_whole_equals_parts(folder: Path) -> None:
    """The whole graph's logits are those of its layers run one by one."""
    ids = np.arange(24) * 7 % VOCAB_SIZE
    whole = onnx_logits(folder / "model.onnx", ids)
    in_pieces = onnx_logits(folder / "model.onnx", ids, large=0)
    np.testing.assert_allclose(in_pieces, whole, atol=0.05 * np.abs(whole).max())
    assert (whole.argmax(-1) == in_pieces.argmax(-1)).mean() > 0.9
