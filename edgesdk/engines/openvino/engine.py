"""Loads a bundle with graphs of fixed shapes on OpenVINO."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from edgesdk.bundle import static_io
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import EngineInfo, LoadSettings, Placement
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
from edgesdk.engines.openvino.library import listed_devices, load_openvino, reason
from edgesdk.engines.openvino.places import OpenVinoPlace, choose_place
from edgesdk.engines.openvino.static_graphs import OpenVinoStaticGraphs, found_ports
from edgesdk.errors import EngineError

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
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": settings.threads})
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
    info = EngineInfo(
        name=f"OpenVINO {openvino.__version__.partition('-')[0]} on {place.runs_on.kind}",
        requested_device=settings.requested_device,
        placement=Placement(
            record.device,
            record.name,
            str(place),
            in_software=place.in_software,
            passed_over=settings.passed_over,
        ),
        vocab_size=spec.vocab_size,
        context_length=loaded.context_length,
        load_seconds=time.perf_counter() - started,
        concurrency=record.concurrency,
        threads=settings.threads if place.in_software else None,
        prefill_step=shape.prefill_tokens,
    )
    return StaticEngine(loaded, info)


def _from_graphs(core: Any, bundle: Bundle, place: OpenVinoPlace) -> _Compiled:
    compiled: _Compiled = {}
    for graph in get_args(GraphName):
        path = bundle.role_file(graph)
        try:
            compiled[graph] = core.compile_model(str(path), place.target, dict(place.properties))
        # A property that does not fit raises another error than a graph that does not.
        except (RuntimeError, TypeError, ValueError) as error:
            raise EngineError(
                f"OpenVINO cannot compile {path} for {place}: {reason(error)}.",
                hint="Export the model again with --target intel.",
            ) from error
    return compiled


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
