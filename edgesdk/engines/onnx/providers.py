"""Makes onnxruntime sessions on the provider of a record, and reads back which nodes run where.

All engines on onnxruntime go through `open_session`. Plugin libraries are registered once in a
process and stay: onnxruntime crashes where a library is unregistered while a session lives.
onnxruntime's own policies for choosing a device are not used: they take the CPU without a word
where nothing is registered, and the first provider wherever one is.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnxruntime as ort

from edgesdk.engines.base import LoadSettings, Placement
from edgesdk.engines.devices import HOST_PROVIDER, DeviceRecord, imported
from edgesdk.engines.probes import listed_devices, processor_names, real_devices
from edgesdk.errors import DeviceUnavailable, EngineError

_DOCTOR = "See: edgesdk doctor"
# As many operators of the CPU, or partitions, are named in an error.
_NAMED_PARTS = 4
_registering = threading.Lock()


@dataclass(frozen=True)
class LoadedSession:
    """A session, and where its nodes run.

    Attributes:
        memory: of the device, to allocate buffers there; None for the CPU.
        version: of the provider's kernels, and the processor that they run on.
    """

    session: ort.InferenceSession
    placement: Placement
    memory: ort.OrtMemoryInfo | None = None
    version: str = ""


def open_session(
    model: Path | bytes,
    record: DeviceRecord,
    settings: LoadSettings,
    *,
    folder: Path | None = None,
    config: Mapping[str, str] | None = None,
) -> LoadedSession:
    """Load a graph on the provider of `record`, and on no other unless `settings` allow it.

    Args:
        model: a file, or its bytes.
        folder: where the files of the weights lie; needed for bytes that refer to such files.
        config: entries of the session's configuration, by name.

    Raises:
        DeviceUnavailable: the provider lists no such device any more, or its library does not load.
        EngineError: onnxruntime cannot load the graph, or the provider runs a part of it only, or
            all of it in several partitions.
    """
    options = session_options(settings, config)
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    provider_options = dict(record.session_options)
    provider_options |= {name: str(value) for name, value in settings.options.items()}
    providers, chosen = None, None
    if record.provider == HOST_PROVIDER:
        providers = [(HOST_PROVIDER, provider_options)]
    else:
        chosen = device_for(record, settings.requested_device)
        options.add_provider_for_devices([chosen], provider_options)
    named = str(model) if isinstance(model, Path) else f"the graph in {folder}"
    try:
        session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=providers,
            # Else onnxruntime prints a line and takes the CPU.
            enable_fallback=0,
        )
    # onnxruntime's exceptions have no common base.
    except Exception as error:
        on = "" if chosen is None else f" on {record.name}"
        raise EngineError(
            f"onnxruntime cannot load {named}{on}: {error}", hint="Check it with: edgesdk verify"
        ) from error
    placement = read_placement(session, record, settings, chosen)
    if chosen is None:
        return LoadedSession(session, placement)
    memory = chosen.memory_info(ort.OrtDeviceMemoryType.DEFAULT)
    version = f"{record.provider} {chosen.ep_metadata.get('version', '')} {placement.processor}"
    return LoadedSession(session, placement, memory, version)


def session_options(
    settings: LoadSettings, config: Mapping[str, str] | None = None
) -> ort.SessionOptions:
    """The options that all sessions have."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Failures come back as exceptions; onnxruntime would also print them.
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    for name, value in (config or {}).items():
        options.add_session_config_entry(name, value)
    return options


def device_for(record: DeviceRecord, requested: str) -> Any:
    """The device, as `OrtEpDevice`, that a record's provider runs on: hardware before software.

    Args:
        requested: a kind, which the device then has to be; any other name takes the best one.

    Raises:
        DeviceUnavailable: there is none.
    """
    register(record)
    listed = listed_devices(record)
    real = real_devices(record, listed)
    if requested in record.kinds and requested != record.device:
        found = [each for each in real if each.device.type.name.lower() == requested]
    else:
        found = real or listed
    if not found:
        raise DeviceUnavailable(
            f"{record.name} lists no {requested if requested in record.kinds else 'device'} here."
            f" It is for {record.where}.",
            hint=_DOCTOR,
        )
    return found[0]


def register(record: DeviceRecord, library: Path | None = None) -> None:
    """Register the plugin library of a record with onnxruntime, unless it is registered.

    Args:
        library: the file, where the record names none.

    Raises:
        DeviceUnavailable: the library is not there, or does not load.
    """
    if (record.library is None and library is None) or listed_devices(record):
        return
    with _registering:
        if listed_devices(record):
            return
        try:
            path: object = library
            if record.library is not None:
                path = cast("Callable[[], object]", imported(record.library))()
            ort.register_execution_provider_library(record.provider, str(path))
        # Whatever a foreign package and onnxruntime raise.
        except Exception as error:
            if "already registered" in str(error):
                return
            raise DeviceUnavailable(
                f"The library of {record.name} does not load: {error}",
                hint=f"Run: pip install --force-reinstall {record.package}",
            ) from error


def read_placement(
    session: ort.InferenceSession, record: DeviceRecord, settings: LoadSettings, chosen: Any
) -> Placement:
    """Ask a session which nodes its providers run.

    Raises:
        EngineError: another provider than the record's runs a part, or the record's compiled
            several partitions, and `settings` do not allow it.
    """
    assigned = list(session.get_provider_graph_assignment_info())
    nodes: Counter[str] = Counter()
    others: Counter[str] = Counter()
    own: list[list[Any]] = []
    for part in assigned:
        found = part.get_nodes()
        nodes[part.ep_name] += len(found)
        if part.ep_name == record.provider:
            own.append(found)
        else:
            others.update(node.op_type for node in found)
    if others and not settings.allow_fallback:
        named = ", ".join(f"{count} {name}" for name, count in others.most_common(_NAMED_PARTS))
        more = ", ..." if len(others) > _NAMED_PARTS else ""
        raise EngineError(
            f"{record.name} runs {sum(map(len, own))} of {nodes.total()} nodes of this graph, in"
            f" {len(own)} parts; the CPU would run the others ({named}{more}).",
            hint="Export the model for that device, or pass allow_fallback=True to share it with"
            " the CPU.",
        )
    # Providers with kernels of their own take node by node; others compile whole subgraphs.
    compiles = record.compiler or len(own) == 1 or max(map(len, own), default=0) > 1
    partitions = len(own) if compiles and chosen is not None else 0
    if partitions > 1 and not settings.allow_fallback:
        raise EngineError(
            f"{record.name} runs this graph in {partitions} partitions, of these nodes:"
            f" {_partitions(own)}. Between them values pass through the host.",
            hint="Export the model for that device, or pass allow_fallback=True to run it in"
            " partitions.",
        )
    software = chosen is not None and not real_devices(record, [chosen])
    return Placement(
        device=record.device,
        provider=record.name,
        processor="the CPU" if chosen is None else processor_names([chosen]),
        in_software=software,
        nodes=tuple(nodes.most_common()),
        partitions=partitions,
        passed_over=settings.passed_over,
    )


def _partitions(found: list[list[Any]]) -> str:
    """How many nodes each has, and its first."""
    named = [f"{len(nodes)} from {nodes[0].name} on" for nodes in found[:_NAMED_PARTS]]
    return ", ".join(named) + (", ..." if len(found) > _NAMED_PARTS else "")
