"""Chooses which providers may run a model, by their records and by what was found of them here.

Only `fitting` is needed where nothing runs: it looks for no device.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edgesdk.bundle.manifest import BundleFormat
from edgesdk.bundle.opening import Bundle
from edgesdk.engines import devices
from edgesdk.engines.devices import DeviceProbe, DeviceRecord, GraphSupport, Kind, graph_for
from edgesdk.engines.discovery import probe
from edgesdk.errors import DeviceUnavailable, EngineError, InvalidOption, UnsupportedBundle

AUTO = "auto"


@dataclass(frozen=True)
class DeviceCandidate:
    """A provider, and what of it fits a model.

    Attributes:
        found: what its probe said; None where it was not probed.
    """

    record: DeviceRecord
    support: GraphSupport
    found: DeviceProbe | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of processors on which the provider runs such a model, the best first."""
        return self.support.kinds or self.record.kinds


@dataclass(frozen=True)
class Selection:
    """The providers to try, in that order, at least one; and what was passed over, with reasons."""

    candidates: tuple[DeviceCandidate, ...]
    passed_over: tuple[str, ...] = ()


def select(source: Bundle | Path, device: str = AUTO, *, allow_fallback: bool = False) -> Selection:
    """Choose what may run a model: the records that fit, and whose provider works here.

    Args:
        device: a device as its record names it gives that one, also where it is a simulator or runs
            in software. A kind ("cpu", "gpu", "npu") gives hardware of that kind, "auto" any
            hardware.
        allow_fallback: where `device` cannot be had, give what "auto" does, and say why.

    Raises:
        InvalidOption: no engine runs such a model on `device`.
        DeviceUnavailable: all that would are absent, or do not work.
        UnsupportedBundle: the bundle was exported for a device that is not known here.
        EngineError: `source` is no model.
    """
    try:
        found, reasons = _working(fitting(source, device), device)
        if not found:
            raise _unavailable(source, device, reasons)
    except (InvalidOption, DeviceUnavailable) as error:
        if not allow_fallback or device == AUTO:
            raise
        fallback = select(source)
        return Selection(fallback.candidates, (f"{device}: {error.message}", *fallback.passed_over))
    if allow_fallback and device != AUTO:
        others = select(source).candidates
        taken = {each.record for each in found}
        found += [each for each in others if each.record not in taken]
    return Selection(tuple(found), () if device == AUTO else tuple(text for text, _ in reasons))


def fitting(source: Bundle | Path, device: str = AUTO) -> list[DeviceCandidate]:
    """The records that run such a model on `device`, the best first; they may be absent here.

    Raises:
        InvalidOption, UnsupportedBundle, EngineError: see `select`.
    """
    model_format = _format_of(source)
    graph = _graph_of(source, model_format)
    fits = [
        DeviceCandidate(record, support)
        for record in devices.DEVICES
        for support in record.runs
        if support.format == model_format and support.graph == graph
    ]
    # Whom the graph was made for comes before those that can run it, too.
    fits.sort(key=lambda each: each.record.runs.index(each.support))
    # "cpu" is a device and a kind; a name comes first.
    chosen = [each for each in fits if each.record.device == device]
    chosen = chosen or [each for each in fits if device in (AUTO, *each.kinds)]
    if not chosen:
        raise _no_engine(source, model_format, device, fits)
    return chosen


def _working(
    candidates: list[DeviceCandidate], device: str
) -> tuple[list[DeviceCandidate], list[tuple[str, str | None]]]:
    """The candidates that work here, and for each other one the reason and what to do."""
    if len(candidates) == 1 and candidates[0].record.kind == "cpu":
        # Its engine says best what is missing, and a probe may cost a process.
        return candidates, []
    on_cpu = any(each.record.kind == "cpu" for each in candidates)
    works: list[DeviceCandidate] = []
    reasons: list[tuple[str, str | None]] = []
    for each in candidates:
        record = each.record
        by_name = device == record.device
        if not by_name and record.platforms and sys.platform not in record.platforms:
            reasons.append((f"{record.name}: it is for {record.where}", None))
            continue
        if device == AUTO and on_cpu and _lacks_device_files(record):
            reasons.append((f"{record.name}: no driver of it is loaded", None))
            continue
        found = probe(record)
        reason = _reason_against(each, found, device, by_name=by_name)
        if reason is None:
            works.append(DeviceCandidate(record, each.support, found))
        else:
            reasons.append((f"{record.name}: {reason}", found.advice))
    return works, reasons


def _lacks_device_files(record: DeviceRecord) -> bool:
    if sys.platform != "linux" or not record.device_files:
        return False
    return not any(Path(file).exists() for file in record.device_files)


def _reason_against(
    candidate: DeviceCandidate, found: DeviceProbe, device: str, *, by_name: bool
) -> str | None:
    """Why a provider cannot be taken, given what its probe found; None where it can."""
    record = candidate.record
    if found.state == "ready":
        wanted = candidate.kinds if device == AUTO else (device,)
        if by_name or not {*wanted}.isdisjoint(found.kinds or record.kinds):
            return None
        return f"it finds no {' or '.join(wanted).upper()} ({found.found})"
    if found.state == "software" and by_name:
        return None
    words = {
        "not installed": f"it is not installed ({found.found})",
        "broken": f"it does not work ({found.found})",
        "no device": f"it finds no device ({found.found})",
        "virtual": f"it only compiles here ({found.found})",
        "software": f"it runs in software here ({found.found}); device={record.device!r} takes it",
    }
    return words[found.state]


def _unavailable(
    source: Bundle | Path, device: str, reasons: list[tuple[str, str | None]]
) -> DeviceUnavailable:
    advice = [each for _, each in reasons if each is not None]
    asked = "hardware here" if device == AUTO else f"the device {device!r}"
    return DeviceUnavailable(
        f"{place_of(source)} cannot run on {asked}. {'. '.join(text for text, _ in reasons)}.",
        hint="; or ".join(dict.fromkeys(advice)) or "See: edgesdk doctor",
    )


def _no_engine(
    source: Bundle | Path, model_format: BundleFormat, device: str, fits: list[DeviceCandidate]
) -> InvalidOption:
    """The error where nothing runs such a model on a device: what is known of the device, on which
    ones the model runs, and how to export it for this one."""
    known = [each for each in devices.DEVICES if device in (each.device, *each.kinds)]
    runs_on = ", ".join([AUTO, *_names(each.record for each in fits)])
    if not known:
        return InvalidOption(
            f"There is no device {device!r}.", hint=f"Choose from: {runs_on}; see: edgesdk doctor"
        )
    if not any(each.runs for each in known):
        names = ", ".join(each.name for each in known)
        return InvalidOption(
            f"No engine runs this {model_format} model on the device {device!r}: edgesdk has no"
            f" engine yet for {names}.",
            hint=f"Choose from: {runs_on}.",
        )
    # A kind is a target too: what all of its devices run.
    target = device if device in get_args(Kind) else known[0].device
    made = ""
    if isinstance(source, Bundle):
        made = f", which was exported for {source.manifest.target!r}"
        command = f"edgesdk export {source.manifest.source.name} --target {target}"
    else:
        command = f"edgesdk export {source} --target {target}"
    return InvalidOption(
        f"No engine runs this {model_format} model{made}, on the device {device!r}.",
        hint=f"Choose from: {runs_on}. Or export it for that device: {command}",
    )


def place_of(source: Bundle | Path) -> Path:
    """Where a model lies."""
    return source.path if isinstance(source, Bundle) else source


def _names(records: Iterable[DeviceRecord]) -> list[str]:
    return list(dict.fromkeys(record.device for record in records))


def _graph_of(source: Bundle | Path, model_format: BundleFormat) -> str:
    target = source.manifest.target if isinstance(source, Bundle) else devices.DEFAULT_TARGET
    graph = graph_for(target, model_format)
    if graph is None:
        raise UnsupportedBundle(
            f"The bundle {place_of(source)} was exported for"
            f" the device {target!r}, which this edgesdk does not know.",
            hint="Upgrade edgesdk, or export the model again.",
        )
    return graph


def _format_of(source: Bundle | Path) -> BundleFormat:
    if isinstance(source, Bundle):
        return source.manifest.format
    if source.suffix.lower() == ".gguf":
        return "gguf"
    raise EngineError(
        f"{source} is neither an opened bundle nor a .gguf file.",
        hint="Open a bundle folder with edgesdk.open_bundle first.",
    )
