"""Opens the graphs of a bundle as a provider of onnxruntime compiled them, and compiles them once.

What an app ships in the bundle's folder `compiled` is looked at first, then the cache of this
machine; `edgesdk compile` fills both.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.npu.compile_cache import CompileCache, load_compiled
from edgesdk.engines.npu.onnx_compiler import (
    OnnxCompiler,
    chosen_target,
    graph_file,
    with_target,
)
from edgesdk.engines.npu.static_graphs import GraphName
from edgesdk.engines.onnx.providers import LoadedSession, device_for, open_session
from edgesdk.engines.probes import real_devices
from edgesdk.errors import EngineError

SHIPPED = "compiled"


def open_compiled(
    bundle: Bundle, record: DeviceRecord, settings: LoadSettings
) -> dict[GraphName, LoadedSession]:
    """The sessions of compiled graphs, each of one node, or of several where `settings` allow it.

    Raises:
        InvalidOption: the options name no processor that the provider knows.
        DeviceUnavailable: the provider lists no device.
        EngineError: a graph cannot be compiled as a whole, or the disk is full.
    """
    device = device_for(record, settings.requested_device)
    simulated = not real_devices(record, [device])
    target = chosen_target(record, settings, simulated=simulated)
    settings = with_target(settings, target)

    def load(folder: Path) -> dict[GraphName, LoadedSession]:
        return {
            graph: open_session(folder / graph_file(graph), record, settings)
            for graph in get_args(GraphName)
        }

    return load_compiled(
        CompileCache(),
        OnnxCompiler(bundle, record, target, settings),
        load,
        shipped=CompileCache(bundle.path / SHIPPED),
        progress=settings.progress or (lambda done, of: None),
    )


def _whole(loaded: LoadedSession, record: DeviceRecord) -> LoadedSession:
    if sum(count for _, count in loaded.placement.nodes) != 1:
        raise EngineError(f"{record.name} does not run the graph as a whole.")
    return loaded
