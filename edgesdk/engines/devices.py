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

# What a support rests on: it ran on its hardware, in a simulator of it, or in software in its
# place; or only recorded answers of its package were tested; or nothing was run.
Proof = Literal["hardware", "simulator", "software", "recorded", "not run"]

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
class GraphSupport:
    """One variant of graph that a provider runs.

    Attributes:
        graph: the variant; bundles for all devices whose records have it run there.
        format: of the bundles that have such a graph.
        opener: "module:function" that loads a model; see `edgesdk.engines.registry.EngineOpener`.
        footprint: "module:function" that says what memory a model takes.
        proof: what the support rests on.
        tests: the files of tests that show it.
    """

    graph: str
    format: BundleFormat
    opener: str
    footprint: str
    proof: Proof
    tests: tuple[str, ...]


@dataclass(frozen=True)
class DeviceRecord:
    """One provider. Those without `runs` can be found, and run nothing yet.

    Attributes:
        name: what `edgesdk doctor` calls it.
        device: the device that it runs on, as callers name it and as a bundle's `target` says.
        kind: what sort of processor that is.
        also: further kinds that it can drive, the best first.
        package: the distribution that has it; None where no package index has one.
        module: the module whose absence means that the package is absent; None where edgesdk
            needs the package anyway.
        extra: the extra of edgesdk that installs the package; None where there is none.
        probe: "module:function" that finds out how far it works here, of this record.
        isolated: whether it is probed in a process of its own, because a driver may crash.
        platforms: values of `sys.platform` where its hardware can be; empty for all.
        provider: onnxruntime's name of it; None where another library runs the model.
        library: "module:function" that gives the path of the plugin library to register with
            onnxruntime; None where it is built in.
        where: the machines that have such a device, in words.
        runs: the variants of graph that it runs, first the one that an exporter writes for it.
        kv_type: numbers in the KV cache.
        concurrency: how many calls of `extend` are best under way at once.
        options: the options that `edgesdk.load` takes for it.
        session_options: provider options that its sessions always have, by name.
        accuracy_level: what `MatMulNBits` may round its inputs to, as onnxruntime counts: 1 keeps
            float32, 4 rounds to 8 bits. None takes what the graph says.
        proof: what the support of its discovery rests on.
        tests: the files of tests that show that.
    """

    name: str
    device: str
    kind: Kind
    package: str | None
    probe: str
    where: str
    also: tuple[Kind, ...] = ()
    module: str | None = None
    extra: str | None = None
    isolated: bool = True
    platforms: tuple[str, ...] = ()
    provider: str | None = None
    library: str | None = None
    runs: tuple[GraphSupport, ...] = ()
    kv_type: Literal["float32", "float16"] = "float32"
    concurrency: int = 1
    options: tuple[DeviceOption, ...] = ()
    session_options: tuple[tuple[str, str], ...] = ()
    accuracy_level: int | None = None
    proof: Proof = "recorded"
    tests: tuple[str, ...] = ("tests/unit/test_probes.py",)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """All kinds of processors that it can drive, the best first."""
        return (self.kind, *self.also)


def graph_for(target: str, model_format: BundleFormat) -> str | None:
    """The variant of graph that bundles of a format have for a target; None where there is none.

    Args:
        target: a device as its record names it, or a kind, which stands for the first record of it.
    """
    named = [record for record in DEVICES if record.device == target]
    named = named or [record for record in DEVICES if record.kind == target]
    supports = (support for record in named for support in record.runs)
    return next((each.graph for each in supports if each.format == model_format), None)


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
        kinds: of the processors that it found, where the record has several.
    """

    state: State
    found: str
    advice: str | None = None
    kinds: tuple[Kind, ...] = ()


# One decoder graph for prefill and decode, with onnxruntime's own operators.
FUSED_OPERATORS = "fused-operators"
_ONNX_ENGINE = "edgesdk.engines.onnx.engine:open_engine"
_ONNX_FOOTPRINT = "edgesdk.engines.onnx.footprint:footprint"
_PROBES = "edgesdk.engines.probes"
_PLUGIN = f"{_PROBES}:plugin"

# The order of the table, and of devices that nothing was measured of: the best first.
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
        runs=(
            GraphSupport(
                graph=FUSED_OPERATORS,
                format="onnx",
                opener=_ONNX_ENGINE,
                footprint=_ONNX_FOOTPRINT,
                proof="hardware",
                tests=("tests/integration/test_engine_contract.py",),
            ),
        ),
        kv_type="float32",
        # onnxruntime's threads leave gaps between operators, which other calls fill.
        concurrency=4,
        proof="hardware",
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
        runs=(
            GraphSupport(
                graph="llama.cpp",
                format="gguf",
                opener="edgesdk.engines.gguf.engine:open_engine",
                footprint="edgesdk.engines.gguf.footprint:footprint",
                proof="hardware",
                tests=("tests/integration/test_engine_contract.py",),
            ),
        ),
        kv_type="float16",
        # Calls that may share a batch; more would make each step of all of them longer.
        concurrency=8,
        proof="hardware",
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
        also=("gpu",),
        package="openvino",
        module="openvino",
        extra="openvino",
        probe=f"{_PROBES}:openvino",
        platforms=("linux", "win32"),
        where="machines with an NPU or a GPU of Intel's",
        options=(
            DeviceOption("device", str, ("NPU", "GPU", "CPU")),
            # The others are OpenVINO's own, by its names and with its values.
            DeviceOption("INFERENCE_PRECISION_HINT", str, ("f32", "f16", "bf16")),
            DeviceOption("EXECUTION_MODE_HINT", str, ("ACCURACY", "PERFORMANCE")),
            DeviceOption("DYNAMIC_QUANTIZATION_GROUP_SIZE", int),
            DeviceOption("CACHE_DIR", str),
            DeviceOption("NPU_COMPILER_TYPE", str, ("DRIVER", "PLUGIN", "PREFER_PLUGIN")),
            DeviceOption("NPU_COMPILATION_MODE_PARAMS", str),
            DeviceOption("NPU_TURBO", str, ("YES", "NO")),
            DeviceOption("NPU_USE_NPUW", str, ("YES", "NO")),
            DeviceOption(
                "NPUW_ONLINE_PIPELINE",
                str,
                ("NONE", "INIT", "JUST", "REP", "REG", "COMPUTE", "SPATIAL"),
            ),
        ),
    ),
    DeviceRecord(
        name="Apple MLX",
        device="apple",
        kind="gpu",
        package="mlx",
        module="mlx",
        extra="mlx",
        probe=f"{_PROBES}:mlx",
        platforms=("darwin",),
        where="Macs with Apple silicon",
        runs=(
            # It reads the stored weights of that graph, and computes from the spec.
            GraphSupport(
                graph=FUSED_OPERATORS,
                format="onnx",
                opener="edgesdk.engines.mlx.engine:open_engine",
                footprint=_ONNX_FOOTPRINT,
                proof="software",
                tests=(
                    "tests/integration/test_engine_contract.py",
                    "tests/integration/test_mlx.py",
                ),
            ),
        ),
        options=(DeviceOption("precision", str, ("float32", "float16", "bfloat16")),),
    ),
    DeviceRecord(
        name="Apple Core ML",
        device="coreml",
        kind="npu",
        package="coremltools",
        module="coremltools",
        probe=f"{_PROBES}:core_ml",
        platforms=("darwin",),
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
        extra="webgpu",
        runs=(
            GraphSupport(
                graph=FUSED_OPERATORS,
                format="onnx",
                opener=_ONNX_ENGINE,
                footprint=_ONNX_FOOTPRINT,
                proof="software",
                tests=("tests/integration/test_webgpu.py",),
            ),
        ),
        accuracy_level=1,
    ),
    DeviceRecord(
        name="NVIDIA CUDA",
        device="cuda",
        kind="gpu",
        package="onnxruntime-gpu",
        probe=f"{_PROBES}:cuda",
        provider="CUDAExecutionProvider",
        platforms=("linux", "win32"),
        where="machines with an NVIDIA GPU",
        runs=(
            GraphSupport(
                graph=FUSED_OPERATORS,
                format="onnx",
                opener=_ONNX_ENGINE,
                footprint=_ONNX_FOOTPRINT,
                proof="not run",
                tests=(),
            ),
        ),
    ),
    DeviceRecord(
        name="Windows ML",
        device="windows",
        kind="npu",
        package="windowsml",
        module="windowsml",
        probe=f"{_PROBES}:windows_ml",
        platforms=("win32",),
        where="Windows 11, among others for AMD's NPUs",
        proof="not run",
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
