"""Loads a bundle with graphs of fixed shapes on OpenVINO."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from edgesdk.bundle import static_io
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.npu.compile_cache import CompileCache, load_compiled
from edgesdk.engines.npu.compiled_graphs import SHIPPED
from edgesdk.engines.npu.static_engine import (
    StaticEngine,
    check_ports,
    loaded_model,
    static_bundle,
)
from edgesdk.engines.npu.static_graphs import GraphName
from edgesdk.engines.openvino.compiling import blob_file, compilation_here
from edgesdk.engines.openvino.library import listed_devices, load_openvino
from edgesdk.engines.openvino.loading import compiled_graph, engine_info, new_core
from edgesdk.engines.openvino.places import OpenVinoPlace, choose_place
from edgesdk.engines.openvino.static_graphs import OpenVinoStaticGraphs, found_ports

_Compiled = dict[GraphName, Any]


def open_engine(
    source: Bundle | Path, *, record: DeviceRecord, settings: LoadSettings
) -> StaticEngine:
    """Load the graphs of a bundle with OpenVINO.

    Raises:
        MissingExtra: openvino is not installed.
        DeviceUnavailable: the device that was asked for is not here.
        UnsupportedBundle: the bundle has no graphs of fixed shapes.
        DamagedBundle: the graphs' inputs and outputs are not what the manifest promises.
        EngineError: OpenVINO cannot load the graphs, or `source` is no bundle.
    """
    started = time.perf_counter()
    bundle, shape, spec = static_bundle(source)
    openvino = load_openvino()
    core = new_core(openvino, settings)
    place = choose_place(listed_devices(core), settings.requested_device, settings.options)
    if place.compiles_blobs:
        compiled = _from_blobs(core, bundle, record, place, settings.options)
    else:
        compiled = _from_graphs(core, bundle, place)
    for graph, model in compiled.items():
        tokens = 1 if graph == "decode" else shape.prefill_tokens
        for kind, ports, wanted in (
            ("input", model.inputs, static_io.input_ports(spec, shape, tokens)),
            ("output", model.outputs, static_io.output_ports(spec, shape, tokens)),
        ):
            where = str(bundle.role_file(graph))
            check_ports(kind, found_ports(ports, wanted), wanted, where)
    loaded = loaded_model(bundle, OpenVinoStaticGraphs(openvino, compiled), settings.context)
    info = engine_info(
        openvino,
        place,
        record=record,
        settings=settings,
        vocab_size=spec.vocab_size,
        context_length=loaded.context_length,
        prefill_step=shape.prefill_tokens,
        started=started,
    )
    return StaticEngine(loaded, info)


def _from_graphs(core: Any, bundle: Bundle, place: OpenVinoPlace) -> _Compiled:
    return {
        graph: compiled_graph(
            core,
            bundle.role_file(graph),
            place,
            place.properties,
            hint="Export the model again with --target intel.",
        )
        for graph in get_args(GraphName)
    }


def _from_blobs(
    core: Any,
    bundle: Bundle,
    record: DeviceRecord,
    place: OpenVinoPlace,
    options: Mapping[str, object],
) -> _Compiled:
    """The graphs from blobs that the bundle brought, or that were compiled here at some time."""
    compilation = compilation_here(bundle, record, core, options)
    properties = {name: str(value) for name, value in place.properties.items()}

    def load(folder: Path) -> _Compiled:
        return {
            graph: core.import_model(
                blob_file(folder, graph).read_bytes(), place.target, properties
            )
            for graph in get_args(GraphName)
        }

    shipped = CompileCache(bundle.path / SHIPPED)
    return load_compiled(CompileCache(), compilation, load, shipped=shipped)
