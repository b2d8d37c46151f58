"""What each provider's probe makes of what the provider's own package answers.

The answers were recorded from onnxruntime 1.32.0 with onnxruntime-qnn 2.7.0,
onnxruntime-ep-openvino 1.8.1 and onnxruntime-ep-webgpu 0.4.0, from openvino 2026.4.1, from mlx
0.32.4 and from ai-edge-litert 2.3.0, on Linux without an NPU or a GPU; the last one with
SwiftShader. NPUs and GPUs are the same answers with another type.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from edgesdk.engines import probes
from edgesdk.engines.devices import DEVICES, DeviceProbe, DeviceRecord

RECORDS = {record.name: record for record in DEVICES}
DeviceType = Enum("DeviceType", ["CPU", "GPU", "NPU"])


def listed(provider: str, kind: str, vendor: str, vendor_id: int, **metadata: str) -> Any:
    """A device as `onnxruntime.get_ep_devices` gives it."""
    device = SimpleNamespace(type=DeviceType[kind], vendor=vendor, vendor_id=vendor_id)
    return SimpleNamespace(ep_name=provider, device=device, ep_metadata=metadata)


@dataclass
class FakeRuntime:
    """onnxruntime with plugins: registered under a name, one lists the devices of that name."""

    plugins: dict[str, list[Any]] = field(default_factory=dict)
    registered: list[Any] = field(default_factory=list)
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    __version__ = "1.32.0"

    def get_available_providers(self) -> list[str]:
        return list(self.providers)

    def register_execution_provider_library(self, name: str, path: str) -> None:
        assert path == "/plugin.so"
        self.registered += self.plugins.get(name, [])

    def get_ep_devices(self) -> list[Any]:
        return [listed("CPUExecutionProvider", "CPU", "AMD", 4130), *self.registered]


def probe_plugin(
    monkeypatch: pytest.MonkeyPatch, record: DeviceRecord, **plugins: list[Any]
) -> DeviceProbe:
    assert record.module is not None
    assert record.provider is not None
    names = {"own": record.provider, "virtual": f"{record.provider}.virtual"}
    runtime = FakeRuntime({names[name]: found for name, found in plugins.items()})
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)  # type: ignore[arg-type]
    plugin: Any = SimpleNamespace(get_library_path=lambda: "/plugin.so")
    monkeypatch.setitem(sys.modules, record.module, plugin)
    monkeypatch.setattr(probes.importlib.metadata, "version", lambda name: f"{name} 1.0")
    return probes.plugin(record)


QNN, OPENVINO, WEBGPU = (RECORDS[n] for n in ("Qualcomm QNN", "Intel OpenVINO", "WebGPU"))
# OpenVINO as a plugin of onnxruntime, which edgesdk does not use, lists what others do not.
OPENVINO_PLUGIN = replace(
    OPENVINO,
    package="onnxruntime-ep-openvino",
    module="onnxruntime_ep_openvino",
    provider="OpenVINOExecutionProvider",
    library="onnxruntime_ep_openvino:get_library_path",
)


def test_qnns_simulator_is_no_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = [listed("QNNExecutionProvider", "CPU", "AMD", 4130)]
    found = probe_plugin(monkeypatch, QNN, own=simulator)
    assert found == DeviceProbe("software", "onnxruntime-qnn 1.0; CPU (AMD)")


def test_a_listed_npu_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    npu = [listed("QNNExecutionProvider", "NPU", "Qualcomm", 0x4D4F4351)]
    found = probe_plugin(monkeypatch, QNN, own=npu)
    words = "onnxruntime-qnn 1.0; NPU (Qualcomm)"
    assert found == DeviceProbe("ready", words, kinds=("npu",))


def test_devices_that_only_can_be_compiled_for_are_virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    platforms = [
        listed("OpenVINOExecutionProvider", "NPU", "Intel", 32902, npu_platform=number)
        for number in ("6010", "4000")
    ]
    found = probe_plugin(monkeypatch, OPENVINO_PLUGIN, virtual=platforms)
    words = "onnxruntime-ep-openvino 1.0; compiles for NPU 6010 (Intel), NPU 4000 (Intel)"
    assert found == DeviceProbe("virtual", words)


def test_an_intel_processor_without_npu_runs_openvino_in_software(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = [listed("OpenVINOExecutionProvider", "CPU", "Intel", 32902)]
    assert probe_plugin(monkeypatch, OPENVINO_PLUGIN, own=processor).state == "software"


def test_no_device_says_which_machines_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe_plugin(monkeypatch, WEBGPU)
    words = "onnxruntime-ep-webgpu 1.0; for machines with a GPU"
    assert found == DeviceProbe("no device", words)


@pytest.mark.parametrize(
    ("vendor_id", "vendor", "state"),
    [(0x1AE0, "", "software"), (0x8086, "Intel", "ready"), (0x10DE, "NVIDIA", "ready")],
)
def test_a_gpu_in_software_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, vendor_id: int, vendor: str, state: str
) -> None:
    gpu = [listed("WebGpuExecutionProvider", "GPU", vendor, vendor_id)]
    assert probe_plugin(monkeypatch, WEBGPU, own=gpu).state == state


@pytest.mark.parametrize(
    ("devices", "state", "kinds"),
    [
        ({"CPU": "AMD EPYC"}, "software", ()),
        ({"CPU": "i7", "NPU": "Intel(R) AI Boost"}, "ready", ("npu",)),
        ({"CPU": "i7", "GPU.0": "iGPU", "GPU.1": "dGPU"}, "ready", ("gpu",)),
        ({"CPU": "i7", "GPU": "iGPU", "NPU": "Intel(R) AI Boost"}, "ready", ("npu", "gpu")),
        ({}, "no device", ()),
    ],
)
def test_openvino_on_the_processor_is_software(
    monkeypatch: pytest.MonkeyPatch,
    devices: dict[str, str],
    state: str,
    kinds: tuple[str, ...],
) -> None:
    core = SimpleNamespace(
        available_devices=list(devices), get_property=lambda device, _: devices[device]
    )
    package: Any = SimpleNamespace(Core=lambda: core)
    monkeypatch.setitem(sys.modules, "openvino", package)
    monkeypatch.setattr(probes.importlib.metadata, "version", lambda name: "2026.4.1")
    found = probes.openvino(OPENVINO)
    assert (found.state, found.kinds) == (state, kinds)
    assert found.found.startswith("2026.4.1; ")
    assert all(name in found.found for name in devices.values())


@pytest.mark.parametrize(("metal", "state"), [(True, "ready"), (False, "software")])
def test_mlx_without_metal_is_software(
    monkeypatch: pytest.MonkeyPatch, metal: bool, state: str
) -> None:
    core: Any = SimpleNamespace(metal=SimpleNamespace(is_available=lambda: metal))
    monkeypatch.setitem(sys.modules, "mlx.core", core)
    assert probes.mlx(RECORDS["Apple MLX"]).state == state


@pytest.mark.parametrize(
    ("system", "release", "machine", "state"),
    [
        ("darwin", "15.0", "arm64", "ready"),
        ("darwin", "26.1", "arm64", "ready"),
        ("darwin", "14.7.1", "arm64", "no device"),
        ("darwin", "15.0", "x86_64", "virtual"),
        ("linux", "", "x86_64", "virtual"),
    ],
)
def test_core_ml_runs_on_apple_silicon_with_states_only(
    monkeypatch: pytest.MonkeyPatch, system: str, release: str, machine: str, state: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.mac_ver", lambda: (release, ("", "", ""), machine))
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert probes.core_ml(RECORDS["Apple Core ML"]).state == state


def test_cuda_needs_an_onnxruntime_that_was_built_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    record, gpu = RECORDS["NVIDIA CUDA"], [listed("CUDAExecutionProvider", "GPU", "NVIDIA", 4318)]
    for providers, devices, state in (
        ((), [], "not installed"),
        (("CUDAExecutionProvider",), [], "no device"),
        (("CUDAExecutionProvider",), gpu, "ready"),
    ):
        runtime: Any = FakeRuntime(providers=providers, registered=devices)
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        assert probes.cuda(record).state == state
