"""Loads the prefill and decode graphs of a bundle, and checks that they can be driven."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, get_args

import onnxruntime as ort

from edgesdk.bundle import static_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.opening import Bundle
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.base import EngineInfo, LoadSettings, Placement, joined
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.npu.decode_state import LoadedStaticModel, StaticDecodeState
from edgesdk.engines.npu.onnx_static_graphs import OnnxStaticGraphs
from edgesdk.engines.npu.rope_rows import RopeRows
from edgesdk.engines.npu.static_graphs import GraphName, StaticGraphs
from edgesdk.engines.onnx.providers import LoadedSession, open_session
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import DamagedBundle, EngineError, UnsupportedBundle

_ORT_TYPES = {
    "int32": "tensor(int32)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
}


class StaticEngine:
    """Implements `edgesdk.engines.base.Engine` over graphs of fixed shapes, whatever runs them."""

    def __init__(self, model: LoadedStaticModel, info: EngineInfo) -> None:
        self._model: LoadedStaticModel | None = model
        self.info: Final = info
        self.kv_identity: Final = model.kv_identity

    def new_state(self) -> StaticDecodeState:
        if self._model is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return StaticDecodeState(self._model)

    def close(self) -> None:
        # States that are alive keep the graphs.
        self._model = None


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
            _compare(kind, ports, wanted, str(path))
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
            graph: open_session(bundle.role_file(graph), record, settings)
            for graph in get_args(GraphName)
        }
    from edgesdk.engines.npu.compiled_graphs import open_compiled

    return open_compiled(bundle, record, settings)


def static_bundle(source: Bundle | Path) -> tuple[Bundle, StaticShape, DecoderSpec]:
    """A bundle that has graphs of fixed shapes, with their sizes and what the decoder is.

    Raises:
        UnsupportedBundle: it has none.
        DamagedBundle: what it says of them cannot be.
        EngineError: `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    shape, spec = source.manifest.static, source.decoder_spec()
    if shape is None or spec is None:
        raise UnsupportedBundle(
            f"The bundle {source.path} has no graphs of fixed shapes.",
            hint="Export the model again, with the device as --target.",
        )
    for name in ("layers", "kv_heads", "head_size", "vocab_size", "hidden_size"):
        if getattr(spec, name) != getattr(source.manifest.shape, name):
            raise DamagedBundle(
                f"{source.path}: spec.{name} is not shape.{name}.",
                hint="Pull or export the model again.",
            )
    return source, shape, spec


def loaded_model(bundle: Bundle, graphs: StaticGraphs, context: int | None) -> LoadedStaticModel:
    """What the states of an engine over `graphs` share; `bundle` is a `static_bundle`."""
    _, shape, spec = static_bundle(bundle)
    limit = static_io.context_of(spec, shape.window)
    return LoadedStaticModel(
        graphs=graphs,
        spec=spec,
        shape=shape,
        context_length=min(limit, context or limit),
        kv_identity=KvIdentity(
            engine="static",
            model=bundle.sha256,
            layout=f"{shape.dtype}, {spec.layers} layers, {spec.kv_heads} KV heads of"
            f" {spec.head_size}, {shape.window} slots",
        ),
        rope_rows=RopeRows(spec, shape.dtype),
    )


def _compare(kind: str, found: list[Any], wanted: static_io.Ports, where: str) -> None:
    by_name = {port.name: port for port in found}
    for name in sorted(wanted.keys() ^ by_name.keys()):
        raise _wrong(where, f"{kind} {name!r} is {'missing' if name in wanted else 'unknown'}")
    for name, (dtype, dims) in wanted.items():
        port = by_name[name]
        if port.type != _ORT_TYPES[dtype]:
            raise _wrong(where, f"{kind} {name!r} is {port.type}, not {_ORT_TYPES[dtype]}")
        if tuple(port.shape) != dims:
            raise _wrong(where, f"{kind} {name!r} has shape {port.shape}, not {list(dims)}")


def _wrong(where: str, what: str) -> DamagedBundle:
    return DamagedBundle(
        f"The graph {where} is not one that this runtime can drive: {what}.",
        hint="Export the model again with this version of edgesdk.",
    )
