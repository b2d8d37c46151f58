"""Which engine runs a model, and on which device.

A backend is one frozen record; its engine's module is imported when it is opened. A new backend
adds a record here and a module of its own.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import Engine
from edgesdk.engines.threads import thread_count
from edgesdk.errors import EngineError, InvalidOption


@dataclass(frozen=True)
class Backend:
    """A way to run models of one format on one device.

    Attributes:
        name: what `edgesdk doctor` calls it.
        format: the bundle format that it runs, "onnx" or "gguf".
        device: the device that it runs on, as callers name it.
        opener: "module:function" that loads a model; see `Opener`.
        extra: the extra of edgesdk that installs what it needs; None where nothing is needed.
    """

    name: str
    format: str
    device: str
    opener: str
    extra: str | None = None


class Opener(Protocol):
    """Loads a model: a bundle, or a bare model file where the format allows that."""

    def __call__(
        self, source: Bundle | Path, *, device_asked: str, threads: int, context: int | None
    ) -> Engine: ...


# The best first: "auto" takes the first of the model's format.
BACKENDS = (
    Backend("onnx-cpu", "onnx", "cpu", "edgesdk.engines.onnx.engine:open_engine"),
    Backend("gguf-cpu", "gguf", "cpu", "edgesdk.engines.gguf.engine:open_engine", extra="gguf"),
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
    backend = choose_backend(_format(source), device)
    module, _, function = backend.opener.partition(":")
    opener = cast("Opener", getattr(importlib.import_module(module), function))
    return opener(source, device_asked=device, threads=thread_count(threads), context=context)


def choose_backend(
    model_format: str, device: str, *, backends: tuple[Backend, ...] = BACKENDS
) -> Backend:
    """The first of `backends` that runs `model_format` on `device`.

    Raises:
        InvalidOption: there is none.
    """
    fitting = [backend for backend in backends if backend.format == model_format]
    for backend in fitting:
        if device in ("auto", backend.device):
            return backend
    raise InvalidOption(
        f"No engine runs {model_format} models on the device {device!r}.",
        hint=f"Choose from: {', '.join(['auto', *sorted({b.device for b in fitting})])}.",
    )


def _format(source: Bundle | Path) -> str:
    if isinstance(source, Bundle):
        return source.manifest.format
    if source.suffix.lower() == ".gguf":
        return "gguf"
    raise EngineError(
        f"{source} is neither an opened bundle nor a .gguf file.",
        hint="Open a bundle folder with edgesdk.open_bundle first.",
    )
