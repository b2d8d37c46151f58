"""The window's side of the engine process: starts it, sends requests, gives events as signals."""

from __future__ import annotations

from PySide6.QtCore import QObject, QTimer, Signal

from edgesdk_desktop.event_process import EventProcess
from edgesdk_desktop.protocol import Request, to_line

_PATIENCE_MS = 5000


class EngineClient(QObject):
    """Talks to one engine process, and starts another one where it died.

    Signals:
        event_came: an `edgesdk_desktop.protocol.Event`.
        died: the process ended by itself.
        restarted: another one was started in its place, which knows nothing yet.
    """

    event_came = Signal(object)
    died = Signal()
    restarted = Signal()

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._process = EventProcess(self)
        self._process.event_came.connect(self.event_came)
        self._process.finished.connect(self._ended)
        self._closing = False

    def start(self) -> None:
        """Start the process; requests may be sent at once."""
        self._process.run("--engine")

    def send(self, request: Request) -> None:
        """Ask for something; what comes of it is an event."""
        self._process.write(to_line(request).encode())

    def close(self) -> None:
        """Let the process end what it is at, and wait for its end."""
        self._closing = True
        self._process.closeWriteChannel()
        if not self._process.waitForFinished(_PATIENCE_MS):
            self._process.kill()
            self._process.waitForFinished(_PATIENCE_MS)

    def _ended(self) -> None:
        if self._closing:
            return
        self.died.emit()
        # Not in a circle where it cannot start at all.
        QTimer.singleShot(500, self._restart)

    def _restart(self) -> None:
        if not self._closing:
            self.start()
            self.restarted.emit()
