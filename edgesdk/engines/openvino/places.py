"""Chooses OpenVINO's device and properties for a model, by what is listed and what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgesdk.engines.openvino.library import OpenVinoDevice
from edgesdk.errors import DeviceUnavailable

# The option that names the device; all others are OpenVINO's own properties.
DEVICE_OPTION = "device"
_BEST_FIRST = ("NPU", "GPU", "CPU")
_DRIVERS = {
    "GPU": "Install Intel's GPU driver (on Debian and Ubuntu: apt install intel-opencl-icd)",
    "NPU": "Install Intel's NPU driver (on Ubuntu: snap install intel-npu-driver)",
}
# NPUW runs parts of a graph as it sees fit; its int4 results then differ from the whole graph's.
_NPUW_DEFAULTS = {"NPUW_ONLINE_PIPELINE": "NONE"}
# Else the CPU computes in bfloat16 where it can, and rounds the inputs of int4 matrices to 8 bits.
_CPU_DEFAULTS = {"EXECUTION_MODE_HINT": "ACCURACY"}


@dataclass(frozen=True)
class OpenVinoPlace:
    """Where and how OpenVINO is to run a model.

    Attributes:
        target: what `compile_model` takes as its device.
        runs_on: the device whose processor computes; NPUW may drive another than its target.
        properties: what `compile_model` takes beside it.
    """

    target: str
    runs_on: OpenVinoDevice
    properties: Mapping[str, object] = field(default_factory=dict)

    @property
    def in_software(self) -> bool:
        """Whether a processor does what is meant for a GPU or an NPU."""
        return self.runs_on.kind == "CPU"

    @property
    def compiles_blobs(self) -> bool:
        """Whether the NPU itself runs whole graphs, which take long to compile and can be kept."""
        return self.target == self.runs_on.kind == "NPU" and "NPUW_DEVICES" not in self.properties

    def __str__(self) -> str:
        return f"{self.runs_on.kind} ({self.runs_on.full_name})"


def choose_place(
    listed: Sequence[OpenVinoDevice], requested: str, options: Mapping[str, object]
) -> OpenVinoPlace:
    """Choose the device that an option names, or that was requested by its kind, or the best.

    Args:
        listed: what OpenVINO has here.
        requested: what the caller of `edgesdk.load` asked for.
        options: of the record: `device`, and OpenVINO's properties.

    Raises:
        DeviceUnavailable: the device is not here.
    """
    wanted = str(options.get(DEVICE_OPTION, requested.upper()))
    if wanted not in _BEST_FIRST:
        kinds = {device.kind for device in listed}
        wanted = next((kind for kind in _BEST_FIRST if kind in kinds), "CPU")
    runs_on = next((device for device in listed if device.kind == wanted), None)
    if runs_on is None:
        raise _unavailable(wanted, listed)
    target = wanted
    properties: dict[str, object] = dict(_CPU_DEFAULTS) if wanted == "CPU" else {}
    if options.get("NPU_USE_NPUW") == "YES":
        target = "NPU"
        properties |= {"NPUW_DEVICES": wanted, **_NPUW_DEFAULTS}
    properties |= {name: value for name, value in options.items() if name != DEVICE_OPTION}
    return OpenVinoPlace(
        target,
        runs_on,
        {
            name: value if isinstance(value, int) else str(value)
            for name, value in properties.items()
        },
    )


def _unavailable(wanted: str, listed: Sequence[OpenVinoDevice]) -> DeviceUnavailable:
    here = ", ".join(f"{device.name} ({device.full_name})" for device in listed) or "no device"
    driver = _DRIVERS.get(wanted, "See: edgesdk doctor")
    return DeviceUnavailable(
        f"OpenVINO finds no {wanted} here; it lists {here}.",
        hint=f"{driver}, or load with device_options={{'device': 'CPU'}}.",
    )
