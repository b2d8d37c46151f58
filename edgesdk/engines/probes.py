"""Finds out how far each provider works here, without loading a model.

A probe takes a provider's record. Most run in a process of their own (`discovery`), so they import
whatever they need. What the packages' own functions answer is written down in
`tests/unit/test_probes.py`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterable
from typing import Any, cast

from edgesdk.engines.devices import DeviceProbe, DeviceRecord, Kind, imported
from edgesdk.engines.openvino.library import listed_devices as listed_openvino_devices
from edgesdk.engines.openvino.library import load_openvino

# PCI vendor of SwiftShader, a GPU in software.
_SOFTWARE_VENDOR = 0x1AE0
# The first whose Core ML keeps states between calls, and takes weights of 4 bits in blocks.
_FIRST_MACOS = 15


def onnxruntime_cpu(record: DeviceRecord) -> DeviceProbe:
    """Whether onnxruntime can be imported, and has the CPU provider."""
    import onnxruntime

    names = onnxruntime.get_available_providers()
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in names)
    found = f"{onnxruntime.__version__}; providers: {providers}"
    if record.provider not in names:
        advice = f"Run: pip install --force-reinstall {record.package}"
        return DeviceProbe("broken", f"{found}; without {record.provider}", advice)
    return DeviceProbe("ready", found)


def llama_cpp(record: DeviceRecord) -> DeviceProbe:
    """Whether llama.cpp loads: one that was built for another processor does not."""
    importlib.import_module("llama_cpp")
    return DeviceProbe("ready", _version(record))


def plugin(record: DeviceRecord) -> DeviceProbe:
    """Register a plugin library with onnxruntime, and look at the devices that it lists.

    onnxruntime never lists plugins among its providers. A plugin has to be registered under the
    name of its provider, or its devices cannot be told from others. Under that name with ".virtual"
    behind it, it lists devices that it can compile for though they are not here.
    """
    import onnxruntime

    assert record.library is not None, "a plugin has a library"
    path = str(cast("Callable[[], object]", imported(record.library))())
    version = _version(record)
    onnxruntime.register_execution_provider_library(record.provider, path)
    listed = listed_devices(record)
    if listed:
        real = real_devices(record, listed)
        if not real:
            return DeviceProbe("software", f"{version}; {processor_names(listed)}")
        kinds = tuple(kind for kind in record.kinds if kind in map(kind_of, real))
        return DeviceProbe("ready", f"{version}; {processor_names(real)}", kinds=kinds)
    if record.kind == "npu":
        onnxruntime.register_execution_provider_library(f"{record.provider}.virtual", path)
        virtual = listed_devices(record)
        if virtual:
            return DeviceProbe("virtual", f"{version}; compiles for {processor_names(virtual)}")
    return DeviceProbe("no device", f"{version}; for {record.where}")


def listed_devices(record: DeviceRecord) -> list[Any]:
    """The devices that onnxruntime lists for a provider, as `OrtEpDevice`."""
    import onnxruntime

    return [each for each in onnxruntime.get_ep_devices() if each.ep_name == record.provider]


def real_devices(record: DeviceRecord, listed: Iterable[Any]) -> list[Any]:
    """Those of `listed` that are hardware of the record's kinds, the best kind first.

    QNN's simulator calls its device a CPU, OpenVINO lists the CPU as well, and SwiftShader is a GPU
    by its type.
    """
    found = [
        each
        for each in listed
        if kind_of(each) in record.kinds and each.device.vendor_id != _SOFTWARE_VENDOR
    ]
    return sorted(found, key=lambda each: record.kinds.index(kind_of(each)))


def kind_of(listed: Any) -> Kind:
    """The kind of a device that onnxruntime lists."""
    return cast("Kind", listed.device.type.name.lower())


def openvino(record: DeviceRecord) -> DeviceProbe:
    """Which devices OpenVINO lists; the processor is always among them."""
    listed = listed_openvino_devices(load_openvino().Core())
    names = ", ".join(f"{device.name} ({device.full_name})" for device in listed)
    found = f"{_version(record)}; {names}"
    kinds = tuple(kind for kind in record.kinds if kind in (each.kind.lower() for each in listed))
    if kinds:
        return DeviceProbe("ready", found, kinds=kinds)
    return DeviceProbe("software", found) if listed else DeviceProbe("no device", found)


def mlx(record: DeviceRecord) -> DeviceProbe:
    """Whether MLX loads, and has a GPU."""
    core: Any = importlib.import_module("mlx.core")
    version = _version(record)
    if core.metal.is_available():
        return DeviceProbe("ready", f"{version}; Metal")
    return DeviceProbe("software", f"{version}; on the CPU, because there is no Metal here")


def core_ml(record: DeviceRecord) -> DeviceProbe:
    """Whether Core ML can run models here, or convert them only."""
    version = _version(record)
    if sys.platform != "darwin" or platform.machine() != "arm64":
        return DeviceProbe("virtual", f"{version}; converts, and runs nothing outside macOS")
    system = platform.mac_ver()[0]
    if int(system.partition(".")[0]) < _FIRST_MACOS:
        advice = f"Update to macOS {_FIRST_MACOS}"
        return DeviceProbe("no device", f"{version}; macOS {system} has no states", advice)
    return DeviceProbe("ready", f"{version}; macOS {system}")


def cuda(record: DeviceRecord) -> DeviceProbe:
    """Whether this onnxruntime was built with CUDA, and finds a GPU."""
    import onnxruntime

    if record.provider not in onnxruntime.get_available_providers():
        return not_installed(record)
    listed = listed_devices(record)
    if not listed:
        return DeviceProbe("no device", f"{onnxruntime.__version__}; no NVIDIA GPU here")
    return DeviceProbe("ready", f"{onnxruntime.__version__}; {processor_names(listed)}")


def litert(record: DeviceRecord) -> DeviceProbe:
    """Whether LiteRT's interpreter loads. Outside Android it runs on the CPU."""
    importlib.import_module("ai_edge_litert.interpreter")
    return DeviceProbe("software", f"{_version(record)}; its interpreter, on the CPU")


def no_package(record: DeviceRecord) -> DeviceProbe:
    """Nothing can be looked for where no package index has a package."""
    return DeviceProbe("not installed", "no package index has a package of it")


def not_installed(record: DeviceRecord) -> DeviceProbe:
    """The finding where the provider's package is absent."""
    what = record.package if record.extra is None else f"'edgesdk[{record.extra}]'"
    return DeviceProbe("not installed", f"for {record.where}", f"Run: pip install {what}")


def _version(record: DeviceRecord) -> str:
    assert record.package is not None
    try:
        return importlib.metadata.version(record.package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def processor_names(listed: Iterable[Any]) -> str:
    """Kinds and makers of devices that onnxruntime lists, for people."""
    names = []
    for each in listed:
        platform_name = each.ep_metadata.get("npu_platform")
        what = each.device.type.name + (f" {platform_name}" if platform_name else "")
        maker = each.device.vendor or "unknown vendor"
        if each.device.vendor_id == _SOFTWARE_VENDOR:
            maker = "SwiftShader"
        names.append(f"{what} ({maker})")
    return ", ".join(dict.fromkeys(names))
