"""What edgesdk knows of each device: one frozen record per provider.

A provider is what runs models of a format on a device, such as onnxruntime's CPU provider. All
that depends on it reads its record: discovery (`edgesdk.engines.discovery`), choice
(`edgesdk.engines.registry`), the engines, `edgesdk doctor`, `--device`, `--target` and the
manifest. A new provider is a record here and, at most, one module beside the engines.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

from edgesdk.bundle.manifest import BundleFormat

Kind = Literal["cpu", "gpu", "npu"]
# How far a provider works on this machine, the least first:
# not installed  its package is absent
# broken         its package is there, and does not load, crashes, or hangs
# no device      it loads, and lists no device of its own here
# virtual        it compiles for a device that is not here, and runs nothing
# software       it runs without its hardware: a simulator, or on the CPU. Right, never fast.
# ready          it runs on its hardware
State = Literal["not installed", "broken", "no device", "virtual", "software", "ready"]

# What the support of a provider rests on: it ran on its hardware, or in software in its place (a
# simulator, or on the CPU); or only its discovery was tested, with recorded answers of its package;
# or nothing of it was run.
Proof = Literal["hardware", "software", "recorded", "not run"]

_CPU = "cpu"
# Every machine has it, and so the provider with which the exporter computes.
DEFAULT_TARGET = _CPU
HOST_PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class DeviceOption:
    """One option of a provider.

    Attributes:
        kind: the type of its value.
        choices: all allowed values; empty where any value of the type is.
    """

    name: str
    kind: type
    choices: tuple[object, ...] = ()


@dataclass(frozen=True)
class DeviceRecord:
    """One provider. Those without `formats` can be found, and run nothing yet.

    Attributes:
        name: what `edgesdk doctor` calls it.
        device: the device that it runs on, as callers name it and as a bundle's `target` says.
        kind: what sort of processor that is.
        package: the distribution that has it; None where no package index has one.
        module: the module whose absence means that the package is absent; None where edgesdk
            needs the package anyway.
        extra: the extra of edgesdk that installs the package; None where there is none.
        probe: "module:function" that finds out how far it works here, of this record.
        isolated: whether it is probed in a process of its own, because a driver may crash.
        provider: onnxruntime's name of it; None where another library runs the model.
        library: "module:function" that gives the path of the plugin library to register with
            onnxruntime; None where it is built in.
        where: the machines that have such a device, in words.
        formats: the bundle formats that it opens.
        opener: "module:function" that loads a model; see `edgesdk.engines.registry.EngineOpener`.
        footprint: "module:function" that says what memory a model takes.
        graph: the variant of graph that an exporter must write for it.
        kv_type: numbers in the KV cache.
        concurrency: how many calls of `extend` are best under way at once.
        options: the options that `edgesdk.load` takes for it.
        proof: what its support rests on.
        tests: the files of tests that show it.
    """

    name: str
    device: str
    kind: Kind
    package: str | None
    probe: str
    where: str
    module: str | None = None
    extra: str | None = None
    isolated: bool = True
    provider: str | None = None
    library: str | None = None
    formats: tuple[BundleFormat, ...] = ()
    opener: str = ""
    footprint: str = ""
    graph: str = ""
    kv_type: Literal["float32", "float16"] = "float32"
    concurrency: int = 1
    options: tuple[DeviceOption, ...] = ()
    proof: Proof = "recorded"
    tests: tuple[str, ...] = ("tests/unit/test_probes.py",)


def imported(place: str) -> object:
    """What "module:function" in a record means; the module is imported."""
    module, _, function = place.partition(":")
    found: object = getattr(importlib.import_module(module), function)
    return found


@dataclass(frozen=True)
class DeviceProbe:
    """What was found out about a provider on this device.

    Attributes:
        found: the version and the devices, or what is wrong.
        advice: what to do; None where nothing is to be done.
    """

    state: State
    found: str
    advice: str | None = None


_PROBES = "edgesdk.engines.probes"
_PLUGIN = f"{_PROBES}:plugin"

# The best first: "auto" takes the first that opens the model.
DEVICES: tuple[DeviceRecord, ...] = (
    DeviceRecord(
        name="onnxruntime",
        device=_CPU,
        kind="cpu",
        package="onnxruntime",
        probe=f"{_PROBES}:onnxruntime_cpu",
        # Every engine of this process needs it anyway.
        isolated=False,
        where="every machine",
        provider=HOST_PROVIDER,
        formats=("onnx",),
        opener="edgesdk.engines.onnx.engine:open_engine",
        footprint="edgesdk.engines.onnx.footprint:footprint",
        graph="fused-operators",
        kv_type="float32",
        # onnxruntime's threads leave gaps between operators, which other calls fill.
        concurrency=4,
        proof="hardware",
        tests=("tests/integration/test_engine_contract.py",),
    ),
    DeviceRecord(
        name="llama-cpp-python",
        device=_CPU,
        kind="cpu",
        package="llama-cpp-python",
        module="llama_cpp",
        extra="gguf",
        # A library that was built for another processor dies on import.
        probe=f"{_PROBES}:llama_cpp",
        where="every machine",
        formats=("gguf",),
        opener="edgesdk.engines.gguf.engine:open_engine",
        footprint="edgesdk.engines.gguf.footprint:footprint",
        graph="llama.cpp",
        kv_type="float16",
        # Calls that may share a batch; more would make each step of all of them longer.
        concurrency=8,
        proof="hardware",
        tests=("tests/integration/test_engine_contract.py",),
    ),
    DeviceRecord(
        name="Qualcomm QNN",
        device="qualcomm",
        kind="npu",
        package="onnxruntime-qnn",
        module="onnxruntime_qnn",
        probe=_PLUGIN,
        provider="QNNExecutionProvider",
        library="onnxruntime_qnn:get_library_path",
        where="Snapdragon processors",
    ),
    DeviceRecord(
        name="Intel OpenVINO",
        device="intel",
        kind="npu",
        package="onnxruntime-ep-openvino",
        module="onnxruntime_ep_openvino",
        probe=_PLUGIN,
        provider="OpenVINOExecutionProvider",
        library="onnxruntime_ep_openvino:get_library_path",
        where="Intel Core Ultra processors",
    ),
    DeviceRecord(
        name="Apple MLX",
        device="apple",
        kind="gpu",
        package="mlx",
        module="mlx",
        extra="mlx",
        probe=f"{_PROBES}:mlx",
        where="Macs with Apple silicon",
        formats=("onnx",),
        opener="edgesdk.engines.mlx.engine:open_engine",
        footprint="edgesdk.engines.onnx.footprint:footprint",
        # It reads the stored weights of that graph, and computes from the spec.
        graph="fused-operators",
        options=(DeviceOption("precision", str, ("float32", "float16", "bfloat16")),),
        proof="software",
        tests=("tests/integration/test_engine_contract.py", "tests/integration/test_mlx.py"),
    ),
    DeviceRecord(
        name="Apple Core ML",
        device="coreml",
        kind="npu",
        package="coremltools",
        module="coremltools",
        probe=f"{_PROBES}:core_ml",
        where="Macs, iPhones and iPads with Apple silicon",
    ),
    DeviceRecord(
        name="WebGPU",
        device="webgpu",
        kind="gpu",
        package="onnxruntime-ep-webgpu",
        module="onnxruntime_ep_webgpu",
        probe=_PLUGIN,
        provider="WebGpuExecutionProvider",
        library="onnxruntime_ep_webgpu:get_library_path",
        where="machines with a GPU",
    ),
    DeviceRecord(
        name="NVIDIA CUDA",
        device="cuda",
        kind="gpu",
        package="onnxruntime-gpu",
        probe=f"{_PROBES}:cuda",
        provider="CUDAExecutionProvider",
        where="machines with an NVIDIA GPU",
        proof="not run",
        tests=("tests/unit/test_probes.py",),
    ),
    DeviceRecord(
        name="Windows ML",
        device="windows",
        kind="npu",
        package="windowsml",
        module="windowsml",
        probe=f"{_PROBES}:windows_ml",
        where="Windows 11, among others for AMD's NPUs",
        proof="not run",
        tests=("tests/unit/test_probes.py",),
    ),
    DeviceRecord(
        name="LiteRT",
        device="litert",
        kind="npu",
        package="ai-edge-litert",
        module="ai_edge_litert",
        probe=f"{_PROBES}:litert",
        where="Android, among others for Google Tensor and MediaTek",
    ),
    DeviceRecord(
        name="Hailo",
        device="hailo",
        kind="npu",
        package=None,
        probe=f"{_PROBES}:no_package",
        isolated=False,
        where="boards with a Hailo accelerator",
        proof="not run",
        tests=(),
    ),
)
