"""Chooses which provider runs a model, by the records of `edgesdk.engines.devices`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, cast

from edgesdk.bundle.manifest import BundleFormat
from edgesdk.bundle.opening import Bundle
from edgesdk.engines import devices
from edgesdk.engines.base import Engine
from edgesdk.engines.devices import DeviceRecord, imported
from edgesdk.engines.discovery import probe
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
        device: see `choose_device`.
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
    opener = cast("EngineOpener", imported(record.opener))
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
        "Callable[[Bundle | Path], Footprint]", imported(choose_device(source, device).footprint)
    )
    return measure(source)


def choose_device(source: Bundle | Path, device: str = AUTO) -> DeviceRecord:
    """Choose what runs a model: of the records that fit, the best whose provider works here.

    Args:
        device: "auto" for any, a kind ("cpu", "gpu", "npu"), or a device as its record names it.

    Raises:
        InvalidOption, UnsupportedBundle, EngineError: see `open_engine`.
    """
    model_format = _format_of(source)
    fitting = [record for record in devices.DEVICES if model_format in record.formats]
    if isinstance(source, Bundle):
        graph = _graph_for(source.manifest.target, fitting, source.path)
        fitting = [record for record in fitting if record.graph == graph]
    chosen = [record for record in fitting if device in (AUTO, record.device, record.kind)]
    if not chosen:
        raise _no_engine(model_format, device, fitting)
    # The last is taken as it is: its engine says best what is missing.
    for record in chosen[:-1]:
        if probe(record).state in ("ready", "software"):
            return record
    return chosen[-1]


def device_names(model_format: BundleFormat | None = None) -> list[str]:
    """Name the devices that run models of a format, the best first; None for any format."""
    return _names(
        record
        for record in devices.DEVICES
        if (record.formats if model_format is None else model_format in record.formats)
    )


def _names(records: Iterator[DeviceRecord] | list[DeviceRecord]) -> list[str]:
    return list(dict.fromkeys(record.device for record in records))


def _no_engine(
    model_format: BundleFormat, device: str, fitting: list[DeviceRecord]
) -> InvalidOption:
    """The error where nothing runs a model on a device; it says what is known of the device."""
    known = [record for record in devices.DEVICES if device in (record.device, record.kind)]
    states = ", ".join(f"{each.name} ({probe(each).state})" for each in known if not each.formats)
    why = f" edgesdk has no engine yet for {states}." if states else ""
    return InvalidOption(
        f"No engine runs this {model_format} model on the device {device!r}.{why}",
        hint=f"Choose from: {', '.join([AUTO, *_names(fitting)])}.",
    )


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
    by_name = {option.name: option for option in record.options}
    for name, value in options.items():
        option = by_name.get(name)
        if option is None:
            known = ", ".join(by_name) or "none"
            raise InvalidOption(f"{record.name} has no option {name!r}.", hint=f"It has: {known}.")
        if type(value) is not option.kind:
            raise InvalidOption(
                f"The option {name!r} of {record.name} must be {option.kind.__name__}, not"
                f" {value!r}."
            )
        if option.choices and value not in option.choices:
            choices = ", ".join(map(str, option.choices))
            raise InvalidOption(
                f"The option {name!r} of {record.name} must be one of {choices}; not {value!r}."
            )


def _format_of(source: Bundle | Path) -> BundleFormat:
    if isinstance(source, Bundle):
        return source.manifest.format
    if source.suffix.lower() == ".gguf":
        return "gguf"
    raise EngineError(
        f"{source} is neither an opened bundle nor a .gguf file.",
        hint="Open a bundle folder with edgesdk.open_bundle first.",
    )
