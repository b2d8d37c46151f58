"""Write a decoder's static graphs and run them on the CPU, as the engine of NPUs does."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import onnxruntime
from edgesdk_export.npu.build import DATA_FILE, GRAPH_FILES, write_graphs
from edgesdk_export.npu.static_scheme import static_scheme
from edgesdk_export.npu.static_weights import store_static
from edgesdk_export.onnx import WeightScheme
from edgesdk_export.weights import Decoder

from edgesdk.bundle import static_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.engines.devices import STATIC_BLOCKS
from edgesdk.engines.npu.decode_state import LoadedStaticModel, StaticDecodeState
from edgesdk.engines.npu.onnx_static_graphs import SESSION_CONFIG, OnnxStaticGraphs
from edgesdk.engines.npu.rope_rows import RopeRows
from edgesdk.engines.npu.static_graphs import GraphName
from edgesdk.engines.saved_state import KvIdentity


def static_state(
    decoder: Decoder,
    folder: Path,
    *,
    scheme: WeightScheme,
    shape: StaticShape,
    graph: str = STATIC_BLOCKS,
) -> StaticDecodeState:
    """A state over graphs that are written to `folder`."""
    chosen = static_scheme(scheme, graph, activations="float16")
    stored, _, _ = store_static(decoder, folder / DATA_FILE, chosen, lambda _: None)
    write_graphs(decoder.spec, stored, shape, folder)
    return open_static_state(decoder, folder, shape)


def open_static_state(decoder: Decoder, folder: Path, shape: StaticShape) -> StaticDecodeState:
    """A state over the graphs that are in `folder`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in SESSION_CONFIG.items():
        options.add_session_config_entry(name, value)
    graphs: dict[GraphName, onnxruntime.InferenceSession] = {
        name: onnxruntime.InferenceSession(
            str(folder / GRAPH_FILES[name]), options, providers=["CPUExecutionProvider"]
        )
        for name in get_args(GraphName)
    }
    model = LoadedStaticModel(
        graphs=OnnxStaticGraphs(graphs),
        spec=decoder.spec,
        shape=shape,
        context_length=static_io.context_of(decoder.spec, shape.window),
        kv_identity=KvIdentity("static", "test", "test"),
        rope_rows=RopeRows(decoder.spec, shape.dtype),
    )
    return StaticDecodeState(model)
