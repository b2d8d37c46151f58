"""Which engine runs a model, and on which device.

A backend is one frozen record; its engine's module is imported when it is opened. A new backend
adds a record here and a module of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import Engine
from edgesdk.errors import EngineError, InvalidOption
from edgesdk.system.plan import Footprint
from edgesdk.system.resources import thread_count


@dataclass(frozen=True)
class DeviceRecord:
    """A way to run models of one format on one device.

    Attributes:
        name: what `edgesdk doctor` calls it.
        format: the bundle format that it runs, "onnx" or "gguf".
        device: the device that it runs on, as callers name it.
        opener: "module:function" that loads a model; see `EngineOpener`.
        footprint: "module:function" that says what memory a model takes; see `footprint`.
        extra: the extra of edgesdk that installs what it needs; None where nothing is needed.
    """

    name: str
    format: str
    device: str
    opener: str
    footprint: str
    extra: str | None = None


class EngineOpener(Protocol):
    """Loads a model: a bundle, or a bare model file where the format allows that."""

    def __call__(
        self, source: Bundle | Path, *, requested_device: str, threads: int, context: int | None
    ) -> Engine: ...


# The best first: "auto" takes the first of the model's format.
DEVICES = (
    DeviceRecord(
        "onnx-cpu",
        "onnx",
        "cpu",
        opener="edgesdk.engines.onnx.engine:open_engine",
        footprint="edgesdk.engines.onnx.footprint:footprint",
    ),
    DeviceRecord(
        "gguf-cpu",
        "gguf",
        "cpu",
        opener="edgesdk.engines.gguf.engine:open_engine",
        footprint="edgesdk.engines.gguf.footprint:footprint",
        extra="gguf",
    ),
)


def open_engine(
    source: Bundle | Path,
    device: str = "auto",
    *,
    threads: int | None = None,
    context: int | None = None,
) -> Engine:
    """Load an opened bundle, or a bare `.gguf` file.

    Args:
        device: "auto", or a device that some backend names.
        threads: CPU threads; None for one per physical core.
        context: most tokens that one sequence may hold; None for the model's own limit, which it
            never exceeds.

    Raises:
        InvalidOption: no backend runs this format on `device`, or an option is out of range.
        MissingExtra: the backend's package is not installed.
        BundleError, EngineError: the model cannot be loaded.
    """
    if context is not None and context < 1:
        raise InvalidOption(f"context must be at least 1 token, not {context}.")
    record = choose_device(_format_of(source), device)
    opener = cast("EngineOpener", _import(record.opener))
    return opener(source, requested_device=device, threads=thread_count(threads), context=context)


def footprint(source: Bundle | Path, device: str = "auto") -> Footprint:
    """What an opened bundle, or a bare `.gguf` file, takes in memory; nothing is loaded.

    Raises:
        InvalidOption: no backend runs this format on `device`.
        EngineError: the file cannot be read, or is damaged.
    """
    record = choose_device(_format_of(source), device)
    measure = cast("Callable[[Bundle | Path], Footprint]", _import(record.footprint))
    return measure(source)


def choose_device(
    model_format: str, device: str, *, records: tuple[DeviceRecord, ...] = DEVICES
) -> DeviceRecord:
    """The first of `records` that runs `model_format` on `device`.

    Raises:
        InvalidOption: there is none.
    """
    fitting = [record for record in records if record.format == model_format]
    for record in fitting:
        if device in ("auto", record.device):
            return record
    raise InvalidOption(
        f"No engine runs {model_format} models on the device {device!r}.",
        hint=f"Choose from: {', '.join(['auto', *sorted({b.device for b in fitting})])}.",
    )


def _import(place: str) -> object:
    module, _, function = place.partition(":")
    found: object = getattr(importlib.import_module(module), function)
    return found


def _format_of(source: Bundle | Path) -> str:
    if isinstance(source, Bundle):
        return source.manifest.format
    if source.suffix.lower() == ".gguf":
        return "gguf"
    raise EngineError(
        f"{source} is neither an opened bundle nor a .gguf file.",
        hint="Open a bundle folder with edgesdk.open_bundle first.",
    )
