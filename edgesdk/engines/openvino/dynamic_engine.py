"""Runs the ONNX graph that is exported for the CPU, of any length, with OpenVINO."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from edgesdk.bundle import graph_io
from edgesdk.bundle.manifest import ModelShape
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo, LoadSettings
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.openvino.dynamic_state import STEP, LoadedDynamicModel, OpenVinoDecodeState
from edgesdk.engines.openvino.library import listed_devices, load_openvino
from edgesdk.engines.openvino.loading import compiled_graph, engine_info, new_core
from edgesdk.engines.openvino.places import choose_place
from edgesdk.engines.openvino.static_graphs import port_of
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import DamagedBundle, EngineError
from edgesdk.system.forks import ForkGuard

# The keys and values are float32, also where the processor would keep them in fewer bits.
_PROPERTIES = {"KV_CACHE_PRECISION": "f32"}


class OpenVinoEngine:
    """Implements `edgesdk.engines.base.Engine`."""

    def __init__(self, loaded: LoadedDynamicModel, info: EngineInfo) -> None:
        self._loaded: LoadedDynamicModel | None = loaded
        self.info: Final = info
        self.kv_identity: Final = loaded.kv_identity

    def new_state(self) -> OpenVinoDecodeState:
        if self._loaded is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return OpenVinoDecodeState(self._loaded)

    def close(self) -> None:
        self._loaded = None


def open_engine(
    source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
) -> OpenVinoEngine:
    """Load the decoder of an ONNX bundle with OpenVINO, on a GPU or the processor.

    OpenVINO takes the rope tables in the file, so a text may have as many tokens as these have
    rows, at most (`edgesdk.bundle.graph_io.ROPE_POSITIONS`).

    Raises:
        MissingExtra: openvino is not installed.
        DeviceUnavailable: the device that was asked for is not here, or is an NPU.
        DamagedBundle: the graph lacks inputs or outputs.
        EngineError: OpenVINO cannot load the graph, or `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    started = time.perf_counter()
    openvino = load_openvino()
    core = new_core(openvino, settings)
    # An NPU takes graphs of fixed shapes only.
    listed = [device for device in listed_devices(core) if device.kind != "NPU"]
    place = choose_place(listed, settings.requested_device, settings.options)
    path = source.role_file("decoder")
    compiled = compiled_graph(
        core,
        path,
        place,
        {**_PROPERTIES, **place.properties},
        hint="Export the model with --target intel.",
    )
    shape = source.manifest.shape
    limit = min(shape.context_length, graph_io.ROPE_POSITIONS)
    loaded = LoadedDynamicModel(
        compiled,
        *_ports(compiled, shape, path),
        shape=shape,
        context_length=min(limit, settings.context or limit),
        kv_identity=KvIdentity(
            engine="openvino",
            model=source.sha256,
            layout=f"float32, {shape.layers} layers, {shape.kv_heads} KV heads of"
            f" {shape.head_size}",
        ),
        fork_guard=ForkGuard("The model", EngineError),
    )
    info = engine_info(
        openvino,
        place,
        record=record,
        settings=settings,
        vocab_size=shape.vocab_size,
        context_length=loaded.context_length,
        prefill_step=STEP,
        started=started,
    )
    return OpenVinoEngine(loaded, info)


def _ports(compiled: Any, shape: ModelShape, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs and outputs by name; hidden states may be missing."""
    layers = range(shape.layers)
    wanted = {
        "input": [
            *(graph_io.INPUT_IDS, graph_io.LOGITS_FROM),
            *(graph_io.SEQLENS_K, graph_io.TOTAL_SEQUENCE_LENGTH),
            *(name for layer in layers for name in graph_io.past_names(layer)),
        ],
        "output": [
            *(graph_io.LOGITS, graph_io.HIDDEN_STATES),
            *(name for layer in layers for name in graph_io.present_names(layer)),
        ],
    }
    found: dict[str, dict[str, Any]] = {"input": {}, "output": {}}
    for kind, ports in (("input", compiled.inputs), ("output", compiled.outputs)):
        for name in wanted[kind]:
            try:
                found[kind][name] = port_of(ports, name)
            except StopIteration:
                if name != graph_io.HIDDEN_STATES:
                    raise DamagedBundle(
                        f"The graph {path} has no {kind} {name!r}.",
                        hint="Export the model again with this version of edgesdk.",
                    ) from None
    return found["input"], found["output"]
