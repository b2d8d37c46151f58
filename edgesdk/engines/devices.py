"""What edgesdk knows of each device: one frozen record per provider.

A provider is what runs models of a format on a device, such as onnxruntime's CPU provider. All
that depends on it reads its record: discovery (`edgesdk.engines.discovery`), choice
(`edgesdk.engines.registry`), the engines, `edgesdk doctor`, `--device`, `--target` and the
manifest. A new provider is a record here and, at most, one module beside the engines.
"""

from __future__ import annotations

from edgesdk.bundle.manifest import BundleFormat
from edgesdk.engines.compile_targets import HTP_PERFORMANCE_MODES, INTEL_NPUS, SNAPDRAGONS
from edgesdk.engines.device_record import (
    CompileTarget,
    DeviceOption,
    DeviceProbe,
    DeviceRecord,
    GraphSupport,
    Kind,
    Proof,
    State,
    imported,
)

__all__ = [
    "DEFAULT_TARGET",
    "DEVICES",
    "FUSED_OPERATORS",
    "HOST_PROVIDER",
    "STATIC_BLOCKS",
    "STATIC_CHANNELS",
    "CompileTarget",
    "DeviceOption",
    "DeviceProbe",
    "DeviceRecord",
    "GraphSupport",
    "Kind",
    "Proof",
    "State",
    "graph_for",
    "imported",
]

_CPU = "cpu"
# Every machine has it, and so the provider with which the exporter computes.
DEFAULT_TARGET = _CPU
HOST_PROVIDER = "CPUExecutionProvider"


def graph_for(target: str, model_format: BundleFormat) -> str | None:
    """The variant of graph that bundles of a format have for a target; None where there is none.

    Args:
        target: a device as its record names it, or a kind, which stands for the first record of it.
    """
    named = [record for record in DEVICES if record.device == target]
    named = named or [record for record in DEVICES if record.kind == target]
    supports = (support for record in named for support in record.runs)
    return next((each.graph for each in supports if each.format == model_format), None)


def first_format(target: str) -> BundleFormat:
    """The format of bundles for a target, one of those that run something, where nobody asks for
    another."""
    named = [record for record in DEVICES if target == record.device and record.runs]
    named = named or [record for record in DEVICES if target == record.kind and record.runs]
    return named[0].runs[0].format


# One decoder graph for prefill and decode, with onnxruntime's own operators.
FUSED_OPERATORS = "fused-operators"
_ONNX_ENGINE = "edgesdk.engines.onnx.engine:open_engine"
_ONNX_FOOTPRINT = "edgesdk.engines.onnx.footprint:footprint"
# Two graphs of fixed shapes, see `edgesdk.bundle.static_io`. Weights that are not floats are
# symmetric blocks of 4 bits, or codes beside quantized activations; or they have one scale for each
# output.
STATIC_BLOCKS, STATIC_CHANNELS = "static-blocks", "static-channels"
_STATIC_ENGINE = "edgesdk.engines.npu.engine:open_engine"
_STATIC_FOOTPRINT = "edgesdk.engines.npu.footprint:footprint"
_OPENVINO_TESTS = tuple(f"tests/integration/test_{x}.py" for x in ("engine_contract", "openvino"))
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
                joiner="edgesdk.engines.onnx.split_engine:SplitEngine",
                encoder="edgesdk.engines.onnx.encoder:open_encoder",
                proof="hardware",
                tests=("tests/integration/test_engine_contract.py",),
            ),
            *(
                GraphSupport(
                    graph=graph,
                    format="onnx",
                    opener=_STATIC_ENGINE,
                    footprint="edgesdk.engines.npu.footprint:footprint_on_cpu",
                    proof="hardware",
                    tests=("tests/integration/test_static_bundles.py",),
                )
                for graph in (STATIC_BLOCKS, STATIC_CHANNELS)
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
                encoder="edgesdk.engines.gguf.encoder:open_encoder",
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
        extra="qualcomm",
        library="onnxruntime_qnn:get_library_path",
        where="Snapdragon processors",
        runs=(
            GraphSupport(
                graph=STATIC_BLOCKS,
                format="onnx",
                opener=_STATIC_ENGINE,
                footprint=_STATIC_FOOTPRINT,
                proof="simulator",
                tests=(
                    "tests/integration/test_qnn.py",
                    "tests/integration/test_qnn_bundles.py",
                    "tests/integration/test_qnn_traps.py",
                ),
            ),
        ),
        kv_type="float16",
        options=(
            DeviceOption("soc_model", int, (36, 43, 57, 60, 69, 87, 88)),
            DeviceOption("htp_arch", int, (69, 73, 75, 79, 81)),
            # The backend "saver" answers zeros, "ir" and "cpu" are no devices.
            DeviceOption("backend_type", str, ("htp",)),
            DeviceOption("htp_performance_mode", str, HTP_PERFORMANCE_MODES),
            DeviceOption("htp_graph_finalization_optimization_mode", int, (0, 1, 2, 3)),
            DeviceOption("vtcm_mb", int, (1, 2, 4, 8, 16)),
            DeviceOption("qnn_context_priority", str, ("low", "normal", "normal_high", "high")),
        ),
        session_options=(
            ("backend_type", "htp"),
            # Else the CPU would quantize what goes in and comes out.
            ("offload_graph_io_quantization", "0"),
        ),
        compiler="edgesdk.engines.npu.onnx_compiler:OnnxCompiler",
        compile_targets=SNAPDRAGONS,
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
        # The last is Windows's, for Linux on it.
        device_files=("/dev/dri", "/dev/accel", "/dev/dxg"),
        where="machines with an NPU or a GPU of Intel's",
        runs=(
            *(
                GraphSupport(
                    graph=graph,
                    format="onnx",
                    opener="edgesdk.engines.openvino.engine:open_engine",
                    footprint=_STATIC_FOOTPRINT,
                    proof="software",
                    tests=_OPENVINO_TESTS,
                )
                for graph in (STATIC_CHANNELS, STATIC_BLOCKS)
            ),
            GraphSupport(
                graph=FUSED_OPERATORS,
                format="onnx",
                opener="edgesdk.engines.openvino.dynamic_engine:open_engine",
                footprint=_ONNX_FOOTPRINT,
                proof="software",
                tests=_OPENVINO_TESTS,
                # NPUs take fixed shapes only.
                kinds=("gpu",),
            ),
        ),
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
        compiler="edgesdk.engines.openvino.compiling:npu_compilation",
        compile_targets=INTEL_NPUS,
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
        also=("gpu",),
        package="coremltools",
        module="coremltools",
        extra="coreml",
        probe=f"{_PROBES}:core_ml",
        platforms=("darwin",),
        where="Macs with Apple silicon",
        runs=(
            GraphSupport(
                graph="ml-program",
                format="coreml",
                opener="edgesdk.engines.coreml.engine:open_engine",
                footprint="edgesdk.engines.coreml.footprint:footprint",
                proof="interpreted",
                tests=(
                    "tests/integration/test_engine_contract.py",
                    "tests/integration/test_coreml.py",
                    "tests/integration/test_coreml_package.py",
                ),
            ),
        ),
        kv_type="float16",
        options=(
            DeviceOption("compute_units", str, ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")),
        ),
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
                joiner="edgesdk.engines.onnx.split_engine:SplitEngine",
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
                joiner="edgesdk.engines.onnx.split_engine:SplitEngine",
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
        probe="edgesdk.engines.windows_catalog:probe",
        also=("gpu",),
        platforms=("win32",),
        where="Windows 11, among others for AMD's NPUs",
        runs=tuple(
            GraphSupport(
                graph=graph,
                format="onnx",
                opener="edgesdk.engines.windows_catalog:open_engine",
                footprint=footprint,
                proof="recorded",
                tests=("tests/integration/test_windows_ml.py",),
                kinds=() if footprint == _STATIC_FOOTPRINT else ("gpu",),
            )
            for graph, footprint in (
                (STATIC_BLOCKS, _STATIC_FOOTPRINT),
                (STATIC_CHANNELS, _STATIC_FOOTPRINT),
                (FUSED_OPERATORS, _ONNX_FOOTPRINT),
            )
        ),
        # Of the catalog; else the first that runs the model.
        options=(DeviceOption("provider", str),),
    ),
    DeviceRecord(
        name="LiteRT",
        device="litert",
        kind="npu",
        package="ai-edge-litert",
        module="ai_edge_litert",
        extra="litert",
        probe=f"{_PROBES}:litert",
        where="Android, among others for Google Tensor and MediaTek",
        runs=(
            GraphSupport(
                graph="litert-signatures",
                format="litert",
                opener="edgesdk.engines.litert.engine:open_engine",
                footprint="edgesdk.engines.litert.footprint:footprint",
                proof="software",
                tests=(
                    "tests/integration/test_engine_contract.py",
                    "tests/integration/test_litert.py",
                ),
            ),
        ),
        # The library of a delegate, which takes over what it can of the graph.
        options=(DeviceOption("delegate", str),),
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
