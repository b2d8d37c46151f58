"""Chooses which provider runs a model, by the records of `edgesdk.engines.devices`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast

from edgesdk.bundle.manifest import BundleFormat
from edgesdk.bundle.opening import Bundle
from edgesdk.engines import devices
from edgesdk.engines.base import Engine
from edgesdk.engines.devices import DeviceProbe, DeviceRecord
from edgesdk.errors import EngineError, InvalidOption, UnsupportedBundle
from edgesdk.system.plan import Footprint
from edgesdk.system.resources import thread_count

AUTO = "auto"


class EngineOpener(Protocol):
    """Loads a model: a bundle, or a bare model file where the format allows that."""

    def __call__(
        self,
        source: Bundle | Path,
        *,
        record: DeviceRecord,
        requested_device: str,
        threads: int,
        context: int | None,
        options: Mapping[str, object],
    ) -> Engine: ...


def open_engine(
    source: Bundle | Path,
    device: str = AUTO,
    *,
    threads: int | None = None,
    context: int | None = None,
    options: Mapping[str, object] | None = None,
) -> Engine:
    """Load an opened bundle, or a bare `.gguf` file.

    Args:
        device: "auto", or one of `device_names`.
        threads: CPU threads; None for one per physical core.
        context: most tokens that one sequence may hold; None for the model's own limit, which it
            never exceeds.
        options: of the provider, as its record lists them.

    Raises:
        InvalidOption: nothing runs this model on `device`, or an option is out of range.
        UnsupportedBundle: the bundle was exported for a device that is not known here.
        MissingExtra: the provider's package is not installed.
        BundleError, EngineError: the model cannot be loaded.
    """
    if context is not None and context < 1:
        raise InvalidOption(f"context must be at least 1 token, not {context}.")
    record = choose_device(source, device)
    _check_options(record, options or {})
    if record.registration is not None:
        cast("Callable[[], None]", _import(record.registration))()
    opener = cast("EngineOpener", _import(record.opener))
    return opener(
        source,
        record=record,
        requested_device=device,
        threads=thread_count(threads),
        context=context,
        options=options or {},
    )


def footprint(source: Bundle | Path, device: str = AUTO) -> Footprint:
    """Say what an opened bundle, or a bare `.gguf` file, takes in memory; nothing is loaded.

    Raises:
        InvalidOption: nothing runs this model on `device`.
        UnsupportedBundle: the bundle was exported for a device that is not known here.
        EngineError: the file cannot be read, or is damaged.
    """
    measure = cast(
        "Callable[[Bundle | Path], Footprint]", _import(choose_device(source, device).footprint)
    )
    return measure(source)


def choose_device(source: Bundle | Path, device: str = AUTO) -> DeviceRecord:
    """Choose what runs a model: for "auto" the best record whose provider works here.

    Raises:
        InvalidOption, UnsupportedBundle, EngineError: see `open_engine`.
    """
    model_format = _format_of(source)
    fitting = [record for record in devices.DEVICES if model_format in record.formats]
    if isinstance(source, Bundle):
        graph = _graph_for(source.manifest.target, fitting, source.path)
        fitting = [record for record in fitting if record.graph == graph]
    chosen = [record for record in fitting if device in (AUTO, record.device)]
    if not chosen:
        raise InvalidOption(
            f"No engine runs this {model_format} model on the device {device!r}.",
            hint=f"Choose from: {', '.join([AUTO, *_names(fitting)])}.",
        )
    # The last is taken as it is: its engine says best what is missing.
    for record in chosen[:-1]:
        if probe(record).status == "ok":
            return record
    return chosen[-1]


def device_names(model_format: BundleFormat | None = None) -> list[str]:
    """Name the devices that run models of a format, the best first; None for any format."""
    return _names(
        record
        for record in devices.DEVICES
        if model_format is None or model_format in record.formats
    )


def probe(record: DeviceRecord) -> DeviceProbe:
    """Find out whether a provider works on this device."""
    return cast("Callable[[DeviceRecord], DeviceProbe]", _import(record.probe))(record)


def _names(records: Iterator[DeviceRecord] | list[DeviceRecord]) -> list[str]:
    return list(dict.fromkeys(record.device for record in records))


def _graph_for(target: str, records: list[DeviceRecord], where: Path) -> str:
    for record in records:
        if record.device == target:
            return record.graph
    raise UnsupportedBundle(
        f"The bundle {where} was exported for the device {target!r}, which this edgesdk does not"
        " know.",
        hint="Upgrade edgesdk, or export the model again.",
    )


def _check_options(record: DeviceRecord, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        kind = record.options.get(name)
        if kind is None:
            known = ", ".join(record.options) or "none"
            raise InvalidOption(f"{record.name} has no option {name!r}.", hint=f"It has: {known}.")
        if type(value) is not kind:
            raise InvalidOption(
                f"The option {name!r} of {record.name} must be {kind.__name__}, not {value!r}."
            )


def _import(place: str) -> object:
    module, _, function = place.partition(":")
    found: object = getattr(importlib.import_module(module), function)
    return found


def _format_of(source: Bundle | Path) -> BundleFormat:
    if isinstance(source, Bundle):
        return source.manifest.format
    if source.suffix.lower() == ".gguf":
        return "gguf"
    raise EngineError(
        f"{source} is neither an opened bundle nor a .gguf file.",
        hint="Open a bundle folder with edgesdk.open_bundle first.",
    )
