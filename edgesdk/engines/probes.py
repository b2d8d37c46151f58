"""Finds out whether the libraries below the engines work here, without loading a model."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from edgesdk.engines.devices import DeviceProbe, DeviceRecord


def onnxruntime_works(record: DeviceRecord) -> DeviceProbe:
    """Whether onnxruntime can be imported, and has the provider."""
    try:
        import onnxruntime
    except Exception as error:
        advice = f"Run: pip install --force-reinstall {record.package}"
        return DeviceProbe("missing", str(error), advice)
    names = onnxruntime.get_available_providers()
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in names)
    listed = ""
    # Older ones than 1.22 cannot list devices.
    if hasattr(onnxruntime, "get_ep_devices"):
        found = onnxruntime.get_ep_devices()
        named = (f"{d.ep_name.removesuffix('ExecutionProvider')} on {_device(d)}" for d in found)
        listed = f"; devices: {', '.join(named) or 'none'}"
    text = f"{onnxruntime.__version__}; providers: {providers}{listed}"
    if record.provider not in names:
        return DeviceProbe("warn", f"{text}; without {record.provider}", _install(record))
    return DeviceProbe("ok", text)


def llama_cpp_works(record: DeviceRecord) -> DeviceProbe:
    """Whether llama.cpp is installed, and was built for this processor."""
    try:
        version = importlib.metadata.version(record.package)
    except importlib.metadata.PackageNotFoundError:
        return DeviceProbe("warn", "not installed", _install(record))
    # A library built for another processor dies on import; a process of its own may.
    command = [sys.executable, "-c", "import llama_cpp"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        advice = f"Build it here: pip install --force-reinstall --no-binary :all: {record.package}"
        return DeviceProbe("warn", f"{version}, but it does not load: {last}", advice)
    return DeviceProbe("ok", version)


def _install(record: DeviceRecord) -> str:
    formats = " and ".join(name.upper() for name in record.formats)
    what = record.package if record.extra is None else f"'edgesdk[{record.extra}]'"
    return f"For {formats} models, run: pip install {what} (this may compile)"


def _device(found: object) -> str:
    device = found.device  # type: ignore[attr-defined]
    return f"{device.type.name} ({device.vendor or 'unknown vendor'})"
