"""Compute the logits of a bundle's static graphs, with the engine that will run them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime

from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.devices import HOST_PROVIDER
from edgesdk.engines.npu.decode_state import LoadedStaticModel, StaticDecodeState
from edgesdk.engines.npu.onnx_static_graphs import SESSION_CONFIG, OnnxStaticGraphs
from edgesdk.engines.npu.rope_rows import RopeRows
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import ExportError
from edgesdk_export.selftest.onnx_decoder import Float32, Ids

# Tokens of the self-test that go through the decode graph.
_SINGLE_TOKENS = 4


def open_static_state(
    prefill: bytes, decode: bytes, folder: Path, spec: DecoderSpec, shape: StaticShape
) -> StaticDecodeState:
    """A state over two graphs on the CPU.

    Args:
        folder: where their data file is.

    Raises:
        ExportError: onnxruntime cannot open them.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    place = {"session.model_external_initializers_file_folder_path": str(folder)}
    for name, value in {**SESSION_CONFIG, **place}.items():
        options.add_session_config_entry(name, value)
    try:
        prefill_session, decode_session = (
            onnxruntime.InferenceSession(
                graph, options, providers=[HOST_PROVIDER], enable_fallback=0
            )
            for graph in (prefill, decode)
        )
    # onnxruntime's exceptions have no common base.
    except Exception as error:
        raise ExportError(
            f"onnxruntime cannot open the graphs that were just written: {error}.",
            hint="This is a fault of the export; please report it with the checkpoint's name.",
        ) from error
    model = LoadedStaticModel(
        graphs=OnnxStaticGraphs({"prefill": prefill_session, "decode": decode_session}),
        spec=spec,
        shape=shape,
        # No text of a test is longer, and what a window may hold is the engine's to say.
        context_length=spec.context_length,
        kv_identity=KvIdentity(engine="static", model="", layout=""),
        rope_rows=RopeRows(spec, shape.dtype),
    )
    return StaticDecodeState(model)


def static_logits(state: StaticDecodeState, ids: Ids) -> Float32:
    """Logits float32 [n, vocab] of tokens int64 [n]: the first through the prefill graph, in two
    pieces, the last few through the decode graph."""
    state.rewind(0)
    single = max(len(ids) - _SINGLE_TOKENS, 1)
    borders = sorted({0, 2 * len(ids) // 3, single, *range(single, len(ids) + 1)})
    rows = [
        state.extend(ids[start:stop], logits="all").copy()
        for start, stop in itertools.pairwise(borders)
    ]
    return np.concatenate(rows)
