"""Lists the models of the store and the catalogue, with what fits this device; fetches models."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import edgesdk
from edgesdk.errors import EdgeError
from edgesdk.store import StoreEntry
from edgesdk.store.download_plan import catalog
from edgesdk_desktop.protocol import Event, PullProgress

_SECONDS_BETWEEN_EVENTS = 0.1


def known_models() -> list[dict[str, Any]]:
    """The models that are here, then those that can be pulled; see `ModelsListed`."""
    entries = edgesdk.Store().list()
    here = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "size": entry.size,
            "pulled": True,
            **_fit(entry),
        }
        for entry in entries
    ]
    names = {entry.name for entry in entries}
    others = [
        {
            "name": name,
            "kind": "checkpoint",
            "size": model.size,
            "pulled": False,
            "usable": True,
            "note": f"{model.licence}; not on this device yet",
        }
        for name, model in catalog().items()
        if name not in names
    ]
    return [*here, *others]


def _fit(entry: StoreEntry) -> dict[str, Any]:
    """Whether a model can be loaded, and a note that says why, or why not."""
    if entry.problem is not None:
        return {"usable": False, "note": entry.problem}
    if entry.kind == "checkpoint" and entry.path.suffix != ".gguf":
        return {"usable": False, "note": "a checkpoint: export it first"}
    try:
        plan = edgesdk.plan(entry.name)
    except EdgeError as error:
        return {"usable": False, "note": error.message}
    need, free = plan.need.total / 1e9, plan.available / 1e9
    if not plan.longest_context:
        return {"usable": False, "note": f"needs {need:.1f} GB of memory; {free:.1f} GB are free"}
    if not plan.fits:
        return {
            "usable": True,
            "note": f"fits with {plan.longest_context:,} of {plan.context:,} tokens of context",
        }
    return {"usable": True, "note": f"fits: {need:.1f} of {free:.1f} GB free"}


def pull_model(reference: str, send: Callable[[Event], None]) -> str:
    """Fetch a model, say how far it is, and return its name."""
    return edgesdk.Store().pull(reference, progress=_PullReporter(reference, send)).name


class _PullReporter:
    """Sends the progress of a pull, not more often than a window can show it."""

    def __init__(self, reference: str, send: Callable[[Event], None]) -> None:
        self._reference, self._send = reference, send
        self._stage, self._done, self._total, self._sent = "", 0, 0, 0.0

    def start(self, stage: str, total: int | None, done: int = 0) -> None:
        """Begin a stage."""
        self._stage, self._done, self._total = stage, done, total or 0
        self._tell()

    def advance(self, count: int) -> None:
        """Count bytes as done."""
        self._done += count
        if time.monotonic() - self._sent > _SECONDS_BETWEEN_EVENTS:
            self._tell()

    def note(self, text: str) -> None:
        """Tell something."""
        self._stage = text
        self._tell()

    def _tell(self) -> None:
        self._sent = time.monotonic()
        self._send(PullProgress(self._reference, self._stage, self._done, self._total))
