"""Build a bundle's prefill and decode graphs from a decoder that a family file describes."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgesdk.bundle.manifest import Role, StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.npu.static_graph import static_model
from edgesdk_export.onnx.graph_builder import Weights

DATA_FILE = "model.onnx.data"
GRAPH_FILES: dict[Role, str] = {"prefill": "prefill.onnx", "decode": "decode.onnx"}


def write_graphs(
    spec: DecoderSpec, weights: Weights, shape: StaticShape, folder: Path
) -> dict[Role, str]:
    """Write both graphs over stored weights, whose data file is in `folder`; their files by
    role."""
    for role, name in GRAPH_FILES.items():
        tokens = 1 if role == "decode" else shape.prefill_tokens
        ir.save(static_model(spec, weights, shape, tokens=tokens), folder / name)
    return GRAPH_FILES
