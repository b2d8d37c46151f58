"""Compiles the graphs of a bundle for one of Intel's NPUs, as the compile cache keeps them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import CompileTarget, DeviceRecord
from edgesdk.engines.npu.compile_cache import CompileKey, CompileProgress
from edgesdk.engines.npu.static_engine import static_bundle
from edgesdk.engines.npu.static_graphs import GraphName
from edgesdk.engines.openvino.library import load_openvino
from edgesdk.engines.openvino.npu_compiler import (
    PLATFORM,
    NpuCompiler,
    PackagedCompiler,
    compatibility,
    npu_compiler,
)
from edgesdk.engines.openvino.places import DEVICE_OPTION

# These change how a blob runs, not what is in it.
_NOT_COMPILED = frozenset({DEVICE_OPTION, "CACHE_DIR", "NPU_TURBO"})


@dataclass(frozen=True)
class NpuCompilation:
    """Implements `edgesdk.engines.npu.compile_cache.Compiler`: a blob for each graph.

    Attributes:
        compile: compiles one graph.
    """

    bundle: Bundle
    key: CompileKey
    compile: NpuCompiler

    def write(self, folder: Path, progress: CompileProgress) -> str:
        graphs = get_args(GraphName)
        for done, graph in enumerate(graphs):
            progress(done, len(graphs))
            self.compile(self.bundle.role_file(graph), blob_file(folder, graph))
        progress(len(graphs), len(graphs))
        return compatibility(blob_file(folder, "decode"))


def npu_compilation(
    bundle: Bundle, record: DeviceRecord, target: CompileTarget | None, settings: LoadSettings
) -> NpuCompilation:
    """What compiles a bundle for a target that need not be here; None for the NPU that is.

    Raises:
        UnsupportedBundle: the bundle has no graphs of fixed shapes.
        MissingExtra: openvino is not installed.
        EngineError: no compiler is at hand.
    """
    if target is None:
        return compilation_here(bundle, record, load_openvino().Core(), settings.options)
    # Imported also where another program compiles: the blob is for this version of it.
    load_openvino()
    platform = dict(target.options)[PLATFORM]
    properties = {PLATFORM: platform, **_compiled_properties(settings.options)}
    key = _key(bundle, record, platform, settings.options)
    return NpuCompilation(bundle, key, npu_compiler(properties))


def compilation_here(
    bundle: Bundle, record: DeviceRecord, core: Any, options: Mapping[str, object]
) -> NpuCompilation:
    """What compiles a bundle for the NPU that `core`, an `openvino.Core`, lists."""
    platform = str(core.get_property("NPU", "DEVICE_ARCHITECTURE"))
    return NpuCompilation(
        bundle,
        _key(bundle, record, platform, options),
        PackagedCompiler(core, _compiled_properties(options)),
    )


def blob_file(folder: Path, graph: GraphName) -> Path:
    """Where the blob of a graph lies in a compilation's folder."""
    return folder / f"{graph}.blob"


def _key(
    bundle: Bundle, record: DeviceRecord, platform: str, options: Mapping[str, object]
) -> CompileKey:
    _, shape, _ = static_bundle(bundle)
    return CompileKey(
        model=bundle.sha256,
        provider=record.name,
        versions=(f"openvino {importlib.metadata.version('openvino')}",),
        platform=platform,
        options=tuple(f"{name}={value}" for name, value in _compiled_properties(options).items()),
        shapes=f"prefill {shape.prefill_tokens}, window {shape.window}, {shape.dtype}",
    )


def _compiled_properties(options: Mapping[str, object]) -> dict[str, str]:
    """Those of a record's options that change what is compiled, sorted."""
    return {
        name: str(value) for name, value in sorted(options.items()) if name not in _NOT_COMPILED
    }
