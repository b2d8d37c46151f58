"""What edgesdk knows of each device: one frozen record per provider.

A provider is what runs models of a format on a device, such as onnxruntime's CPU provider. All
that depends on it reads its record: discovery and choice (`edgesdk.engines.registry`), the
engines, `edgesdk doctor`, `--device`, `--target` and the manifest. A new provider is a record
here and, at most, one module beside the engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from edgesdk.bundle.manifest import BundleFormat

Kind = Literal["cpu", "gpu", "npu"]

_CPU = "cpu"
# Every machine has it, and so the provider with which the exporter computes.
DEFAULT_TARGET = _CPU
HOST_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class DeviceRecord:
    """One provider.

    Attributes:
        name: what `edgesdk doctor` calls it.
        device: the device that it runs on, as callers name it and as a bundle's `target` says.
        kind: what sort of processor that is.
        formats: the bundle formats that it opens.
        package: the distribution that has it.
        extra: the extra of edgesdk that installs the package; None where edgesdk needs it anyway.
        opener: "module:function" that loads a model; see `edgesdk.engines.registry.EngineOpener`.
        footprint: "module:function" that says what memory a model takes.
        probe: "module:function" that finds out whether it works here; see `DeviceProbe`.
        provider: onnxruntime's name of it; None where another library runs the model.
        registration: "module:function" that makes it known to onnxruntime; None where it is.
        options: the options that it takes, by name, each with its type.
        graph: the variant of graph that an exporter must write for it.
        shapes: whether the shapes in that graph may depend on the call.
        kv_owner: who holds the KV cache: the engine of edgesdk, or the library below it.
        kv_type: numbers in the KV cache.
        concurrency: how many calls of `extend` are best under way at once.
    """

    name: str
    device: str
    kind: Kind
    formats: tuple[BundleFormat, ...]
    package: str
    opener: str
    footprint: str
    probe: str
    graph: str
    kv_owner: Literal["engine", "library"]
    kv_type: Literal["float32", "float16"]
    concurrency: int
    extra: str | None = None
    provider: str | None = None
    registration: str | None = None
    shapes: Literal["dynamic", "static"] = "dynamic"
    options: Mapping[str, type] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class DeviceProbe:
    """What was found out about a provider on this device.

    Attributes:
        status: "ok"; "warn": it works not at all or not well; "missing": edgesdk needs it, and it
            does not work.
        found: the version, or what is wrong.
        advice: what to do; None where nothing is to be done.
    """

    status: Literal["ok", "warn", "missing"]
    found: str
    advice: str | None = None


# The best first: "auto" takes the first that opens the model.
DEVICES: tuple[DeviceRecord, ...] = (
    DeviceRecord(
        name="onnxruntime",
        device=_CPU,
        kind="cpu",
        formats=("onnx",),
        package="onnxruntime",
        opener="edgesdk.engines.onnx.engine:open_engine",
        footprint="edgesdk.engines.onnx.footprint:footprint",
        probe="edgesdk.engines.probes:onnxruntime_works",
        provider=HOST_PROVIDER,
        graph="fused-operators",
        kv_owner="engine",
        kv_type="float32",
        # onnxruntime's threads leave gaps between operators, which other calls fill.
        concurrency=4,
    ),
    DeviceRecord(
        name="llama-cpp-python",
        device=_CPU,
        kind="cpu",
        formats=("gguf",),
        package="llama-cpp-python",
        extra="gguf",
        opener="edgesdk.engines.gguf.engine:open_engine",
        footprint="edgesdk.engines.gguf.footprint:footprint",
        probe="edgesdk.engines.probes:llama_cpp_works",
        graph="llama.cpp",
        kv_owner="library",
        kv_type="float16",
        # Calls that may share a batch; more would make each step of all of them longer.
        concurrency=8,
    ),
)
