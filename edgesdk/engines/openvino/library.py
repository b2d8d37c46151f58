"""Imports OpenVINO without its telemetry, and says which devices it has here."""

from __future__ import annotations

import importlib
import sys
import threading
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import MissingExtra

_TELEMETRY = "openvino_telemetry"
_IMPORTING = threading.Lock()


@dataclass(frozen=True)
class OpenVinoDevice:
    """One device that OpenVINO lists.

    Attributes:
        name: OpenVINO's name of it: "CPU", "GPU", "GPU.1", "NPU".
        full_name: what the device calls itself, such as "Intel(R) AI Boost".
    """

    name: str
    full_name: str

    @property
    def kind(self) -> str:
        """ "CPU", "GPU" or "NPU"."""
        return self.name.partition(".")[0]


def load_openvino() -> Any:
    """Import the package `openvino`.

    Its import sends an event to a web analytics service, and leaves a file with an identifier in
    the home folder, unless the package `openvino_telemetry` cannot be imported. So it is hidden
    while OpenVINO is imported, which then takes a stub of its own.

    Raises:
        MissingExtra: it is not installed.
    """
    with _IMPORTING:
        hidden = sys.modules.get(_TELEMETRY)
        # None makes the import of a module fail.
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        except ImportError as error:
            raise MissingExtra("openvino", extra="openvino", needed_for="This device") from error
        finally:
            if hidden is None:
                del sys.modules[_TELEMETRY]
            else:
                sys.modules[_TELEMETRY] = hidden


def listed_devices(core: Any) -> tuple[OpenVinoDevice, ...]:
    """The devices that an `openvino.Core` lists here, in its order; the CPU is among them."""
    return tuple(
        OpenVinoDevice(name, str(core.get_property(name, "FULL_DEVICE_NAME")).strip())
        for name in core.available_devices
    )


def reason(error: Exception) -> str:
    """The last line of an OpenVINO error that says something: those before are its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception from ")]
    return (said or lines or [type(error).__name__])[-1].rstrip(".")
