"""Scales in 8 bits, in a written model: the graph multiplies them out, and onnxruntime folds it."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
from edgesdk_export.onnx import WeightScheme, write_decoder
from edgesdk_quantize.formats import CodedScales, Int4, Int8, Int8Symmetric
from support.written_blocks import assert_whole_equals_parts, divergence

pytestmark = pytest.mark.integration

PLAIN = WeightScheme("plain", Int4(), Int8Symmetric())
CODED = WeightScheme("coded", CodedScales(Int4()), CodedScales(Int8Symmetric()))
WITH_ZEROS = WeightScheme("zeros", CodedScales(Int8()), CodedScales(Int8()))


def test_models_with_coded_scales_are_smaller_and_as_near(tiny_decoder, tmp_path: Path) -> None:
    found = {}
    for scheme in (PLAIN, CODED, WITH_ZEROS):
        folder = tmp_path / scheme.name
        folder.mkdir()
        written = write_decoder(tiny_decoder, folder, scheme)
        found[scheme.name] = written.bits_per_weight, divergence(tiny_decoder, folder)
    # 0.75 bits a weight less, but for the unit of each row; rows are short in a tiny model.
    assert found["coded"][0] < found["plain"][0] - 0.2
    assert found["coded"][1] < 1.5 * found["plain"][1]
    assert found["zeros"][1] < 0.1 * found["plain"][1]


def test_the_whole_graph_computes_what_its_parts_do(tiny_decoder, tmp_path: Path) -> None:
    write_decoder(tiny_decoder, tmp_path, CODED)
    assert_whole_equals_parts(tmp_path)


def test_onnxruntime_folds_scales_when_it_loads(tiny_decoder, tmp_path: Path) -> None:
    write_decoder(tiny_decoder, tmp_path, CODED)
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
