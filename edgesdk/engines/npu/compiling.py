"""Compiles a bundle ahead of time, for processors that need not be here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from edgesdk.bundle.opening import Bundle
from edgesdk.engines import devices
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import CompileTarget, DeviceRecord, imported
from edgesdk.engines.npu.compile_cache import CompileCache, CompileProgress, Compiler
from edgesdk.engines.npu.compiled_graphs import SHIPPED
from edgesdk.engines.npu.onnx_compiler import chosen_target
from edgesdk.engines.selection import DeviceCandidate, fitting
from edgesdk.errors import InvalidOption

_MakeCompiler = Callable[[Bundle, DeviceRecord, "CompileTarget | None", LoadSettings], Compiler]


def compiling_record(device: str) -> DeviceRecord:
    """The record of a device whose provider compiles ahead of time.

    Raises:
        InvalidOption: there is none of that name, or its provider does not compile.
    """
    compiling = [record for record in devices.DEVICES if record.compiler]
    for record in compiling:
        if record.device == device:
            return record
    raise InvalidOption(
        f"edgesdk does not compile models for the device {device!r}.",
        hint=f"Choose from: {', '.join(record.device for record in compiling)}.",
    )


def targets_named(record: DeviceRecord, names: Sequence[str]) -> list[CompileTarget]:
    """The processors of those names.

    Raises:
        InvalidOption: the provider knows no such processor.
    """
    known = {target.name: target for target in record.compile_targets}
    for name in names:
        if name not in known:
            raise InvalidOption(
                f"{record.name} knows no processor {name!r}.",
                hint=f"It has: {', '.join(target.line() for target in known.values())}.",
            )
    return [known[name] for name in dict.fromkeys(names)]


def is_compiled(bundle: Bundle, candidate: DeviceCandidate, settings: LoadSettings) -> bool:
    """Whether a bundle is compiled for the device that its candidate found here."""
    record, found = candidate.record, candidate.found
    simulated = found is not None and found.state == "software"
    compiler = _compiler(
        bundle, record, chosen_target(record, settings, simulated=simulated), settings
    )
    caches = (CompileCache(bundle.path / SHIPPED), CompileCache())
    return any(cache.find(compiler.key) is not None for cache in caches)


def compile_bundle(
    bundle: Bundle,
    record: DeviceRecord,
    target: CompileTarget | None,
    settings: LoadSettings,
    cache: CompileCache,
    progress: CompileProgress,
) -> Path:
    """Compile a bundle into a cache, unless it is there; returns the compilation's folder.

    Raises:
        InvalidOption: bundles of that kind do not run on the device.
        MissingExtra, DeviceUnavailable: the provider's package is absent or does not load.
        EngineError: a graph cannot be compiled as a whole, or the disk is full.
    """
    fitting(bundle, record.device)
    compiler = _compiler(bundle, record, target, settings)
    return cache.find(compiler.key) or cache.store(compiler, progress)


def _compiler(
    bundle: Bundle, record: DeviceRecord, target: CompileTarget | None, settings: LoadSettings
) -> Compiler:
    return cast("_MakeCompiler", imported(record.compiler))(bundle, record, target, settings)
