"""Sessions of onnxruntime on a provider: registered once, on that device, and whole or refused.

onnxruntime is stood in for by what its functions were seen to answer (1.32.0, with
onnxruntime-ep-webgpu 0.4.0 and onnxruntime-qnn 2.7.0). CUDA's answers are taken to have the same
form; nothing of CUDA was run.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgesdk.engines import probes
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import DEVICES, DeviceRecord
from edgesdk.engines.onnx import providers
from edgesdk.engines.onnx.providers import open_session
from edgesdk.errors import DeviceUnavailable, EngineError

RECORDS = {record.name: record for record in DEVICES}
WEBGPU, CUDA, QNN = RECORDS["WebGPU"], RECORDS["NVIDIA CUDA"], RECORDS["Qualcomm QNN"]
DeviceType = Enum("DeviceType", ["CPU", "GPU", "NPU"])
Assigned = list[tuple[str, list[str]]]


class FakeRuntime:
    """onnxruntime with plugins.

    Attributes:
        plugins: by the name under which a library is registered, the devices that it brings.
        assigned: which provider takes which operators, subgraph by subgraph.
    """

    OrtDeviceMemoryType = SimpleNamespace(DEFAULT="memory of the device")
    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)

    def __init__(self) -> None:
        self.plugins: dict[str, list[Any]] = {}
        self.listed: list[Any] = []
        self.registered: list[tuple[str, str]] = []
        self.assigned: Assigned = []
        self.sessions: list[dict[str, Any]] = []
        self.failure: Exception | None = None

    def get_ep_devices(self) -> list[Any]:
        return list(self.listed)

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if self.failure is not None:
            raise self.failure
        if any(name == known for known, _ in self.registered):
            raise RuntimeError(f"library is already registered under {name}")
        self.registered.append((name, path))
        self.listed += self.plugins.get(name, [])

    class SessionOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}
            self.devices: list[Any] = []
            self.options: dict[str, str] = {}

        def add_session_config_entry(self, name: str, value: str) -> None:
            self.entries[name] = value

        def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
            self.devices, self.options = devices, options

    def InferenceSession(self, model: Any, options: Any, **arguments: Any) -> Any:  # noqa: N802
        self.sessions.append({"model": model, "options": options, **arguments})
        if self.failure is not None:
            raise self.failure
        parts = [
            SimpleNamespace(
                ep_name=name,
                get_nodes=lambda kinds=kinds: [
                    SimpleNamespace(op_type=kind, name=f"{kind}_{place}")
                    for place, kind in enumerate(kinds)
                ],
            )
            for name, kinds in self.assigned
        ]
        return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)


def device(record: DeviceRecord, kind: str, vendor: str = "Maker", vendor_id: int = 1) -> Any:
    """A device as `onnxruntime.get_ep_devices` gives it."""
    hardware = SimpleNamespace(type=DeviceType[kind], vendor=vendor, vendor_id=vendor_id)
    return SimpleNamespace(
        ep_name=record.provider,
        device=hardware,
        ep_metadata={"version": "0.4.0"},
        memory_info=lambda which: which,
    )


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    made = FakeRuntime()
    monkeypatch.setattr(providers, "ort", made)
    monkeypatch.setitem(sys.modules, "onnxruntime", made)  # type: ignore[arg-type]
    for record in (WEBGPU, QNN):
        package: Any = SimpleNamespace(get_library_path=lambda: "/plugin.so")
        monkeypatch.setitem(sys.modules, str(record.module), package)
    assert probes.listed_devices(WEBGPU) == []
    return made


def settings(requested: str = "auto", **changes: Any) -> LoadSettings:
    return LoadSettings(requested, 2, **changes)


def whole(record: DeviceRecord, count: int = 3) -> Assigned:
    """A provider with kernels of its own takes node by node."""
    return [(str(record.provider), ["MatMulNBits"])] * count


def test_a_library_is_registered_once_however_many_threads_ask(runtime: FakeRuntime) -> None:
    runtime.plugins = {"WebGpuExecutionProvider": [device(WEBGPU, "GPU")]}
    runtime.assigned = whole(WEBGPU)
    threads = [
        threading.Thread(target=open_session, args=(Path("m"), WEBGPU, settings()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runtime.sessions) == 4
    assert runtime.registered == [("WebGpuExecutionProvider", "/plugin.so")]


def test_a_session_is_on_that_device_and_falls_back_nowhere(runtime: FakeRuntime) -> None:
    gpu = device(WEBGPU, "GPU", "Intel", 0x8086)
    runtime.plugins = {"WebGpuExecutionProvider": [gpu]}
    runtime.assigned = whole(WEBGPU)
    record = replace(WEBGPU, session_options=(("a", "1"), ("b", "2")))
    loaded = open_session(b"graph", record, settings(options={"b": 3}), folder=Path("weights"))
    (made,) = runtime.sessions
    assert (made["enable_fallback"], made["providers"]) == (0, None)
    assert made["options"].devices == [gpu]
    assert made["options"].options == {"a": "1", "b": "3"}
    entries = made["options"].entries
    assert entries["session.model_external_initializers_file_folder_path"] == "weights"
    assert loaded.memory == "memory of the device"
    assert loaded.placement.line() == "webgpu (WebGPU, GPU (Intel))"
    assert loaded.placement.nodes == (("WebGpuExecutionProvider", 3),)
    assert "0.4.0" in loaded.version


def test_cuda_goes_the_same_way_without_a_plugin(runtime: FakeRuntime) -> None:
    runtime.listed = [device(CUDA, "GPU", "NVIDIA", 0x10DE)]
    runtime.assigned = whole(CUDA)
    loaded = open_session(Path("m"), CUDA, settings("gpu"))
    assert runtime.registered == []
    assert str(loaded.placement) == "cuda (NVIDIA CUDA, GPU (NVIDIA))"


def test_hardware_comes_before_software_and_a_kind_is_kept(runtime: FakeRuntime) -> None:
    both = replace(QNN, also=("gpu",))
    simulator, gpu, npu = (device(QNN, kind) for kind in ("CPU", "GPU", "NPU"))
    runtime.listed = [simulator, gpu, npu]
    assert providers.device_for(both, "auto") is npu
    assert providers.device_for(both, "qualcomm") is npu
    assert providers.device_for(both, "gpu") is gpu
    runtime.listed = [simulator]
    assert providers.device_for(both, "qualcomm") is simulator
    with pytest.raises(DeviceUnavailable, match=r"lists no npu here\. It is for Snapdragon"):
        providers.device_for(both, "npu")


def test_a_simulator_is_called_software(runtime: FakeRuntime) -> None:
    runtime.listed = [device(QNN, "CPU", "AMD", 4130)]
    runtime.assigned = [("QNNExecutionProvider", ["MatMulNBits"] * 25)]
    placement = open_session(Path("m"), QNN, settings("qualcomm")).placement
    assert (placement.in_software, placement.partitions) == (True, 1)
    assert placement.line() == "qualcomm (Qualcomm QNN, CPU (AMD)); in software; 1 partition"


def test_a_device_that_is_gone(runtime: FakeRuntime) -> None:
    with pytest.raises(DeviceUnavailable, match="WebGPU lists no device here") as raised:
        open_session(Path("m"), WEBGPU, settings())
    assert raised.value.hint == "See: edgesdk doctor"


def test_a_library_that_does_not_load(runtime: FakeRuntime) -> None:
    runtime.failure = OSError("libvulkan.so.1: cannot open shared object file")
    with pytest.raises(
        DeviceUnavailable, match=r"WebGPU does not load: libvulkan\.so\.1"
    ) as raised:
        open_session(Path("m"), WEBGPU, settings())
    assert raised.value.hint == "Run: pip install --force-reinstall onnxruntime-ep-webgpu"


def test_a_session_that_fails(runtime: FakeRuntime) -> None:
    runtime.listed = [device(WEBGPU, "GPU")]
    runtime.failure = RuntimeError("Failed to get a WebGPU adapter")
    with pytest.raises(EngineError, match="cannot load m on WebGPU: Failed to get"):
        open_session(Path("m"), WEBGPU, settings())


@pytest.mark.parametrize(
    ("assigned", "words", "partitions"),
    [
        (
            [("QNNExecutionProvider", ["MatMulNBits"] * 9)] * 2
            + [("CPUExecutionProvider", ["GroupQueryAttention"])],
            r"Qualcomm QNN runs 18 of 19 nodes .* in 2 parts.*\(1 GroupQueryAttention\)",
            2,
        ),
        (
            [("CPUExecutionProvider", ["Add", "Add", "Mul", "Cast", "Cos", "Sin", "Div"])],
            r"runs 0 of 7 nodes .* in 0 parts.*\(2 Add, 1 Mul, 1 Cast, 1 Cos, \.\.\.\)",
            0,
        ),
        (
            [("QNNExecutionProvider", ["Mul"] * 9), ("QNNExecutionProvider", ["Softmax", "Add"])],
            r"in 2 partitions, of these nodes: 9 from Mul_0 on, 2 from Softmax_0 on\.",
            2,
        ),
        # As they are compiled, a node is a partition.
        (
            [("QNNExecutionProvider", ["EPContext"])] * 5,
            r"in 5 partitions, of these nodes: (1 from EPContext_0 on, ){4}\.\.\.\.",
            5,
        ),
    ],
)
def test_a_graph_that_is_split_is_refused_unless_it_may_be(
    runtime: FakeRuntime, assigned: Assigned, words: str, partitions: int
) -> None:
    runtime.listed = [device(QNN, "NPU", "Qualcomm")]
    runtime.assigned = assigned
    with pytest.raises(EngineError, match=words) as raised:
        open_session(Path("m"), QNN, settings())
    assert "allow_fallback=True" in str(raised.value.hint)
    placement = open_session(Path("m"), QNN, settings(allow_fallback=True)).placement
    assert placement.partitions == partitions
    total = sum(len(kinds) for _, kinds in assigned)
    assert sum(count for _, count in placement.nodes) == total


def test_a_placement_says_in_one_line_what_is_shared(runtime: FakeRuntime) -> None:
    runtime.listed = [device(QNN, "NPU", "Qualcomm")]
    runtime.assigned = [("QNNExecutionProvider", ["Add"] * 8), ("CPUExecutionProvider", ["Cos"])]
    passed_over = ("Apple MLX: it is not installed",)
    shared = settings(allow_fallback=True, passed_over=passed_over)
    placement = open_session(Path("m"), QNN, shared).placement
    assert placement.line() == (
        "qualcomm (Qualcomm QNN, NPU (Qualcomm)); 9 nodes: 8 on QNNExecutionProvider, 1 on"
        " CPUExecutionProvider; 1 partition; not Apple MLX: it is not installed"
    )
