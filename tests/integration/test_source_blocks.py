"""Calibrated exports of a GGUF whose blocks fit: they stay what they are."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from edgesdk_export.calibration.channel_scales import apply_awq
from edgesdk_export.calibration.importance import collect_importance
from edgesdk_export.calibration.quantizers import SequentialQuantizer, WeightedQuantizer
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx.source_blocks import preserved_blocks, preserved_matrices
from edgesdk_export.onnx.stored_weights import matrix_parts
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.weights import read_whole
from edgesdk_quantize.formats import CodedScales, Int4, Int8
from edgesdk_quantize.formats.blocks import dequantize
from edgesdk_quantize.methods.gptq import RoundingOptions
from support.tiny_ggufs import write_tiny_gguf
from support.tiny_models import VOCAB_SIZE, make_tiny

pytestmark = pytest.mark.integration

TEXT = Windows(np.random.default_rng(0).integers(0, VOCAB_SIZE, (4, 24)))


def gguf_decoder(folder: Path, kind: str):
    model = make_tiny("llama", folder / "hf")
    path = folder / f"{kind}.gguf"
    write_tiny_gguf(model, path, quantized=gguf.GGMLQuantizationType[kind])
    return read_decoder(open_checkpoint(path))


def all_in(decoder, fmt):
    return {name: fmt for name in matrix_parts(decoder.spec) if name.startswith("layers.")}


@pytest.mark.parametrize("method", ["gptq", "weighted"])
@pytest.mark.parametrize("fmt", [Int4(), CodedScales(Int4())], ids=["float32", "uint8"])
def test_calibration_leaves_blocks_that_fit(fmt, method, tmp_path: Path) -> None:
    decoder = gguf_decoder(tmp_path, "Q4_0")
    matrix_formats = all_in(decoder, fmt)
    moved = apply_awq(decoder, TEXT, matrix_formats)
    if method == "gptq":
        quantizer = SequentialQuantizer(moved, TEXT, matrix_formats, RoundingOptions())
    else:
        importance = collect_importance(moved, TEXT, text_name="noise")
        quantizer = WeightedQuantizer(moved, importance, matrix_formats)
    for index in range(decoder.spec.layers):
        for name, packed in quantizer.layer(index).items():
            parts = [
                read_whole(decoder.weights[f"{p}.weight"]) for p in matrix_parts(decoder.spec)[name]
            ]
            exact = np.concatenate(parts)
            np.testing.assert_array_equal(
                dequantize(packed, bits=4, columns=exact.shape[1]), exact, name
            )


def test_blocks_that_do_not_fit_are_rounded(tmp_path: Path) -> None:
    decoder = gguf_decoder(tmp_path, "Q4_0")
    assert preserved_matrices(decoder, all_in(decoder, Int4(block=64))) == frozenset()
    assert preserved_blocks(decoder, "layers.0.qkv", Int4(block=64)) is None
    assert preserved_blocks(decoder, "layers.0.down", Int8()) is not None
    other = gguf_decoder(tmp_path / "other", "Q8_0")
    assert preserved_blocks(other, "layers.0.down", Int4()) is None
    moved = apply_awq(other, TEXT, all_in(other, Int4()))
    assert any(
        not np.array_equal(read_whole(moved.weights[name]), read_whole(other.weights[name]))
        for name in ("layers.0.down.weight", "layers.0.q.weight", "layers.0.gate.weight")
    )
