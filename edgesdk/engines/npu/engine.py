"""Loads the prefill and decode graphs of a bundle with onnxruntime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import onnxruntime as ort

from edgesdk.bundle import static_io
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo, LoadSettings, Placement, joined
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.npu.onnx_static_graphs import SESSION_CONFIG, OnnxStaticGraphs
from edgesdk.engines.npu.static_engine import (
    StaticEngine,
    check_ports,
    loaded_model,
    static_bundle,
)
from edgesdk.engines.npu.static_graphs import GraphName
from edgesdk.engines.onnx.providers import LoadedSession, open_session

# onnxruntime's names of types that have others elsewhere.
_DTYPES = {"float": "float32"}


def open_engine(
    source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
) -> StaticEngine:
    """Load the graphs of a bundle with onnxruntime.

    Raises:
        UnsupportedBundle: the bundle has no graphs of fixed shapes.
        DamagedBundle: the graphs' inputs and outputs are not what the manifest promises.
        EngineError: onnxruntime cannot load the graphs, or `source` is no bundle.
    """
    started = time.perf_counter()
    bundle, shape, spec = static_bundle(source)
    sessions: dict[GraphName, ort.InferenceSession] = {}
    placements: list[Placement] = []
    for graph, loaded in _opened(bundle, record, settings).items():
        path = bundle.role_file(graph)
        session = loaded.session
        placements.append(loaded.placement)
        tokens = 1 if graph == "decode" else shape.prefill_tokens
        for kind, ports, wanted in (
            ("input", session.get_inputs(), static_io.input_ports(spec, shape, tokens)),
            ("output", session.get_outputs(), static_io.output_ports(spec, shape, tokens)),
        ):
            found = {port.name: (_dtype(port.type), tuple(port.shape)) for port in ports}
            check_ports(kind, found, wanted, str(path))
        sessions[graph] = session
    model = loaded_model(bundle, OnnxStaticGraphs(sessions), settings.context)
    info = EngineInfo(
        name=f"onnxruntime {ort.__version__}",
        requested_device=settings.requested_device,
        placement=joined(placements),
        vocab_size=spec.vocab_size,
        context_length=model.context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=record.concurrency,
        threads=settings.threads,
        prefill_step=shape.prefill_tokens,
    )
    return StaticEngine(model, info)


def _opened(
    bundle: Bundle, record: DeviceRecord, settings: LoadSettings
) -> dict[GraphName, LoadedSession]:
    """The sessions of the graphs: as they are, or as the provider compiled them."""
    if not record.compiler:
        return {
            graph: open_session(bundle.role_file(graph), record, settings, config=SESSION_CONFIG)
            for graph in get_args(GraphName)
        }
    from edgesdk.engines.npu.compiled_graphs import open_compiled

    return open_compiled(bundle, record, settings)


def _dtype(kind: str) -> str:
    """ "float32" for "tensor(float)"."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(name, name)
