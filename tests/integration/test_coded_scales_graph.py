"""Scales in 8 bits, in a written model: the graph multiplies them out, and onnxruntime folds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.onnx import WeightScheme, write_decoder
from edgesdk_export.quality.stacks import CheckpointStack, WrittenStack
from edgesdk_export.quality.streamed import compare
from edgesdk_export.quality.text import Windows
from edgesdk_export.selftest.running import onnx_logits
from edgesdk_quantize.formats import CodedScales, Int4, Int8, Int8Symmetric
from support.tiny_models import VOCAB_SIZE, make_tiny

pytestmark = pytest.mark.integration

PLAIN = WeightScheme("plain", Int4(), Int8Symmetric())
CODED = WeightScheme("coded", CodedScales(Int4()), CodedScales(Int8Symmetric()))
WITH_ZEROS = WeightScheme("zeros", CodedScales(Int8()), CodedScales(Int8()))


@pytest.fixture(scope="module", params=["qwen2", "llama-biased"])
def decoder(request, tmp_path_factory):
    """A tied one, and one with a head of its own."""
    folder = tmp_path_factory.mktemp(request.param)
    make_tiny(request.param, folder)
    return read_decoder(open_checkpoint(folder))


def kl(decoder, folder):
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, (4, 32))
    candidate = WrittenStack(decoder.spec, folder / "model.onnx")
    reference = CheckpointStack(decoder)
    return compare(reference, candidate, Windows(ids), progress=lambda *_: None).kl.mean()


def test_models_with_coded_scales_are_smaller_and_as_near(decoder, tmp_path: Path) -> None:
    found = {}
    for scheme in (PLAIN, CODED, WITH_ZEROS):
        folder = tmp_path / scheme.name
        folder.mkdir()
        written = write_decoder(decoder, folder, scheme)
        found[scheme.name] = written.bits_per_weight, kl(decoder, folder)
    # 0.75 bits a weight less, but for the unit of each row; rows are short in a tiny model.
    assert found["coded"][0] < found["plain"][0] - 0.2
    assert found["coded"][1] < 1.5 * found["plain"][1]
    assert found["zeros"][1] < 0.1 * found["plain"][1]


def test_the_whole_graph_computes_what_its_parts_do(decoder, tmp_path: Path) -> None:
    write_decoder(decoder, tmp_path, CODED)
    ids = np.arange(24) * 7 % VOCAB_SIZE
    whole = onnx_logits(tmp_path / "model.onnx", ids)
    in_pieces = onnx_logits(tmp_path / "model.onnx", ids, large=0)
    np.testing.assert_allclose(in_pieces, whole, atol=0.05 * np.abs(whole).max())
    assert (whole.argmax(-1) == in_pieces.argmax(-1)).mean() > 0.9


def test_onnxruntime_folds_scales_when_it_loads(decoder, tmp_path: Path) -> None:
    write_decoder(decoder, tmp_path, CODED)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(tmp_path / "folded.onnx", load_external_data=False).graph
    values = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert products
    assert all(node.input[2] in values for node in products)
