"""What OpenVINO answers, recorded from openvino 2026.4.1; GPUs and NPUs from its documentation."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from edgesdk.engines.openvino.library import (
    OpenVinoDevice,
    listed_devices,
    load_openvino,
    reason,
)
from edgesdk.errors import MissingExtra

NO_COMPILER = """Exception from src/inference/src/cpp/core.cpp:132:
Exception from src/inference/src/dev/plugin.cpp:59:
Exception from src/plugins/intel_npu/src/compiler_adapter/src/plugin_compiler_adapter.cpp:54:
VCL compiler loading failed, aborting. Error: Exception from src/vcl_api.cpp:22:
Cannot load library "libs/libopenvino_intel_npu_compiler_loader.so"



"""
NO_GPU = """Exception from src/inference/src/cpp/core.cpp:132:
Exception from src/inference/src/dev/plugin.cpp:59:
Check 'contexts.count(device_id)' failed at src/plugins/intel_gpu/src/plugin/plugin.cpp:312:
[GPU] Context was not initialized for 0 device


"""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (NO_COMPILER, 'Cannot load library "libs/libopenvino_intel_npu_compiler_loader.so"'),
        (NO_GPU, "[GPU] Context was not initialized for 0 device"),
        ("Unknown value for platform: 9999\n\n", "Unknown value for platform: 9999"),
        ("Exception from src/a.cpp:1:\n", "Exception from src/a.cpp:1:"),
        ("", "RuntimeError"),
    ],
)
def test_of_an_error_what_is_no_source_file_is_told(message: str, said: str) -> None:
    assert reason(RuntimeError(message)) == said


def test_devices_have_a_kind_and_the_name_that_they_give_themselves() -> None:
    names = {
        "CPU": "AMD EPYC ",
        "GPU.1": "Intel(R) Arc(TM) Graphics (dGPU)",
        "NPU": "Intel(R) AI Boost",
    }
    core = SimpleNamespace(
        available_devices=list(names), get_property=lambda device, _: names[device]
    )
    listed = listed_devices(core)
    assert listed[0] == OpenVinoDevice("CPU", "AMD EPYC")
    assert [device.kind for device in listed] == ["CPU", "GPU", "NPU"]


def test_a_package_that_is_absent_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtra, match=r"edgesdk\[openvino\]"):
        load_openvino()


def test_the_telemetry_of_others_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    telemetry, openvino = SimpleNamespace(), SimpleNamespace()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", telemetry)  # type: ignore[arg-type]

    def imported(name: str) -> object:
        seen.append((name, sys.modules["openvino_telemetry"]))
        return openvino

    monkeypatch.setattr("edgesdk.engines.openvino.library.importlib.import_module", imported)
    assert load_openvino() is openvino
    assert seen == [("openvino", None)]
    assert sys.modules["openvino_telemetry"] is telemetry
