"""Which of OpenVINO's devices a model is compiled for, and with which properties."""

from __future__ import annotations

import pytest

from edgesdk.engines.openvino.library import OpenVinoDevice
from edgesdk.engines.openvino.places import choose_place
from edgesdk.errors import DeviceUnavailable

CPU = OpenVinoDevice("CPU", "AMD EPYC")
GPU = OpenVinoDevice("GPU", "Intel(R) Arc(TM) Graphics (iGPU)")
SECOND_GPU = OpenVinoDevice("GPU.1", "Intel(R) Arc(TM) B580 Graphics (dGPU)")
NPU = OpenVinoDevice("NPU", "Intel(R) AI Boost")


@pytest.mark.parametrize(
    ("listed", "requested", "options", "target"),
    [
        ([CPU, GPU, NPU], "intel", {}, "NPU"),
        ([CPU, GPU], "intel", {}, "GPU"),
        ([CPU, SECOND_GPU], "auto", {}, "GPU"),
        ([CPU], "intel", {}, "CPU"),
        ([CPU, GPU, NPU], "gpu", {}, "GPU"),
        ([CPU, GPU, NPU], "npu", {}, "NPU"),
        ([CPU, GPU, NPU], "npu", {"device": "CPU"}, "CPU"),
    ],
)
def test_an_option_a_kind_or_the_best(
    listed: list[OpenVinoDevice], requested: str, options: dict[str, object], target: str
) -> None:
    place = choose_place(listed, requested, options)
    assert place.target == place.runs_on.kind == target
    assert place.in_software == (target == "CPU")
    assert place.compiles_blobs == (target == "NPU")
    assert "device" not in place.properties


@pytest.mark.parametrize(
    ("wanted", "driver"), [("GPU", "intel-opencl-icd"), ("NPU", "intel-npu-driver")]
)
def test_a_device_that_is_not_here_is_named_with_its_driver(wanted: str, driver: str) -> None:
    for requested, options in (("intel", {"device": wanted}), (wanted.lower(), {})):
        with pytest.raises(DeviceUnavailable, match=f"no {wanted} here; it lists CPU") as caught:
            choose_place([CPU], requested, options)
        assert driver in str(caught.value.hint)


def test_the_processor_computes_exactly_unless_told_otherwise() -> None:
    """By default it computes in bfloat16, and rounds the inputs of int4 matrices to 8 bits."""
    assert choose_place([CPU], "intel", {}).properties == {"EXECUTION_MODE_HINT": "ACCURACY"}
    fast = {"EXECUTION_MODE_HINT": "PERFORMANCE"}
    assert choose_place([CPU], "intel", fast).properties == fast
    assert choose_place([CPU, NPU], "intel", {}).properties == {}


def test_npuw_drives_the_device_with_whole_graphs_unless_told_otherwise() -> None:
    options = {"device": "CPU", "NPU_USE_NPUW": "YES"}
    place = choose_place([CPU], "intel", options)
    assert place.target == "NPU"
    assert place.in_software
    assert not place.compiles_blobs
    assert place.properties == {
        "NPU_USE_NPUW": "YES",
        "NPUW_DEVICES": "CPU",
        "NPUW_ONLINE_PIPELINE": "NONE",
        "EXECUTION_MODE_HINT": "ACCURACY",
    }
    cut = choose_place([CPU], "intel", {**options, "NPUW_ONLINE_PIPELINE": "REP"})
    assert cut.properties["NPUW_ONLINE_PIPELINE"] == "REP"
    real = choose_place([CPU, NPU], "intel", {"NPU_USE_NPUW": "YES"})
    assert real.properties["NPUW_DEVICES"] == "NPU"
    assert not real.in_software
