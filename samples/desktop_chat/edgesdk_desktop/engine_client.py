"""The window's side of the engine process: starts it, sends requests, gives events as signals."""

from __future__ import annotations

import codecs
import os
import sys

from PySide6.QtCore import QObject, QProcess, QProcessEnvironment, QTimer, Signal

from edgesdk_desktop.protocol import Event, Failed, Request, from_line, to_line

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
        self._process = QProcess(self)
        environment = QProcessEnvironment.systemEnvironment()
        # The engine process finds what this one finds.
        environment.insert("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        environment.insert("PYTHONUNBUFFERED", "1")
        self._process.setProcessEnvironment(environment)
        self._process.setProcessChannelMode(QProcess.ProcessChannelMode.ForwardedErrorChannel)
        self._process.readyReadStandardOutput.connect(self._read)
        self._process.finished.connect(self._ended)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._unread = ""
        self._closing = False

    def start(self) -> None:
        """Start the process; requests may be sent at once."""
        frozen = getattr(sys, "frozen", False)
        arguments = ["--engine"] if frozen else ["-m", "edgesdk_desktop", "--engine"]
        self._process.start(sys.executable, arguments)

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

    def _read(self) -> None:
        arrived = bytes(self._process.readAllStandardOutput().data())
        *lines, self._unread = (self._unread + self._decoder.decode(arrived)).split("\n")
        for line in lines:
            self.event_came.emit(_event(line))

    def _ended(self) -> None:
        if self._closing:
            return
        self._unread = ""
        self._decoder.reset()
        self.died.emit()
        # Not in a circle where it cannot start at all.
        QTimer.singleShot(500, self._restart)

    def _restart(self) -> None:
        if not self._closing:
            self.start()
            self.restarted.emit()


def _event(line: str) -> Event:
    try:
        return from_line(line)  # type: ignore[return-value]
    except ValueError as error:
        return Failed("", f"The engine said something that is no event: {error}.")
