"""The sessions of a bundle: that of its own graph, and those of the graphs of its adapters.

A graph with inputs for low-rank weights has more nodes, which cost time where there is nothing to
add. So the bundle's own graph stays as it is, and adapters have another session, over the same
weight files. Adapters whose graphs are equal share it, and differ in what they bind.
"""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from edgesdk.bundle.adapter import Adapter
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import LoadSettings
from edgesdk.engines.devices import DeviceRecord
from edgesdk.engines.onnx.accuracy import with_accuracy_level
from edgesdk.engines.onnx.providers import LoadedSession, open_session
from edgesdk.errors import EngineError, MissingExtra


class DecoderSessions:
    """Opens sessions of one bundle on one device. Safe to use from several threads."""

    def __init__(self, source: Bundle, record: DeviceRecord, settings: LoadSettings) -> None:
        self.source = source
        self.record = record
        self.settings = settings
        # One that no engine uses any more is freed.
        self._adapted: weakref.WeakValueDictionary[str, LoadedSession] = (
            weakref.WeakValueDictionary()
        )
        self._opening = threading.Lock()

    def open(self, adapter: Adapter | None) -> LoadedSession:
        """The session for an adapter, which others may share; None gives a new one of the
        bundle's own graph.

        Raises:
            AdapterMismatch: the adapter is for another bundle.
            DeviceUnavailable, EngineError, MissingExtra: see `edgesdk.engines.onnx.engine`.
        """
        path = self.source.role_file("decoder")
        if adapter is None:
            return open_session(
                self._graph(path) or path, self.record, self.settings, folder=path.parent
            )
        adapter.require_base(self.source.sha256, self.source.path)
        key = adapter.file_sha256("decoder")
        with self._opening:
            found = self._adapted.get(key)
            if found is None:
                graph = adapter.role_file("decoder")
                # As bytes, so that its weights are looked for beside the bundle's own graph.
                found = open_session(
                    self._graph(graph) or graph.read_bytes(),
                    self.record,
                    self.settings,
                    folder=path.parent,
                )
                self._adapted[key] = found
            return found

    def _graph(self, path: Path) -> bytes | None:
        """The graph as the device wants it, where it asks for another accuracy; else None."""
        level = self.record.accuracy_level
        if level is None:
            return None
        try:
            return with_accuracy_level(path, level, extra=self.record.extra or "export")
        except MissingExtra:
            raise
        # onnx_ir raises what protobuf and the file system raise.
        except Exception as error:
            raise EngineError(
                f"{path} cannot be read as a graph: {error}", hint="Check it with: edgesdk verify"
            ) from error
