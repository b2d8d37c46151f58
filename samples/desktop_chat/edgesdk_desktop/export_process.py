"""The process that exports a checkpoint: it may take all memory, and be ended at any time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from edgesdk.errors import EdgeError, requires_extra
from edgesdk.store import Store, find_checkpoint
from edgesdk_desktop.event_process import event_writer
from edgesdk_desktop.protocol import CheckpointExported, Event, ExportAdvanced, Failed

_LOG = logging.getLogger("edgesdk_desktop")
_SECONDS_BETWEEN_EVENTS = 0.1


def main(checkpoint: str) -> int:
    """Export a checkpoint of the store, or a path, to a bundle in the store."""
    send = event_writer()
    try:
        send(_exported(checkpoint, send))
    except EdgeError as error:
        send(Failed("Export", error.message, error.hint or ""))
    except Exception as error:
        _LOG.exception("the export failed")
        send(Failed("Export", f"Something went wrong: {type(error).__name__}: {error}"))
    return 0


def _exported(checkpoint: str, send: Callable[[Event], None]) -> CheckpointExported:
    with requires_extra("export", needed_for="Exporting"):
        from edgesdk_export.pipeline import ExportJob, export
    store = Store()
    source, name, licence = find_checkpoint(store, checkpoint)
    job = ExportJob(source, store.bundle_path(name), name, licence=licence)
    bundle = export(job, _ExportReporter(send))
    quality = bundle.manifest.quality
    return CheckpointExported(name, "quality not measured" if quality is None else quality.line())


class _ExportReporter:
    """Sends the progress of an export, not more often than a window can show it."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send
        self._values: dict[str, Any] = {"stage": "", "done": 0, "total": 0, "note": ""}
        self._sent = 0.0

    def stage(self, title: str, steps: int) -> None:
        """Begin a stage."""
        self._values.update(stage=title, done=0, total=steps, note="")
        self._tell()

    def advance(self, done: int) -> None:
        """So many steps are over."""
        self._values["done"] = done
        if time.monotonic() - self._sent > _SECONDS_BETWEEN_EVENTS:
            self._tell()

    def note(self, text: str) -> None:
        """Tell something."""
        self._values["note"] = text
        self._tell()

    def _tell(self) -> None:
        self._sent = time.monotonic()
        self._send(ExportAdvanced(**self._values))
