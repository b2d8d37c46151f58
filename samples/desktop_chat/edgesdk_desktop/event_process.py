"""A process of the window's own: started with a flag, it writes events to its standard output."""

from __future__ import annotations

import codecs
import os
import sys
import threading
from collections.abc import Callable

from PySide6.QtCore import QObject, QProcess, QProcessEnvironment, Signal

from edgesdk_desktop.protocol import Event, Failed, from_line, to_line


class EventProcess(QProcess):
    """Runs this program again, and gives its events as signals.

    Signals:
        event_came: an `edgesdk_desktop.protocol.Event`.
    """

    event_came = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        environment = QProcessEnvironment.systemEnvironment()
        if not getattr(sys, "frozen", False):
            # The other process finds what this one finds.
            environment.insert("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        environment.insert("PYTHONUNBUFFERED", "1")
        self.setProcessEnvironment(environment)
        self.setProcessChannelMode(QProcess.ProcessChannelMode.ForwardedErrorChannel)
        self.readyReadStandardOutput.connect(self._read)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._unread = ""

    def run(self, *arguments: str) -> None:
        """Start it with arguments of `edgesdk_desktop.__main__`."""
        self._unread = ""
        self._decoder.reset()
        program = [] if getattr(sys, "frozen", False) else ["-m", "edgesdk_desktop"]
        self.start(sys.executable, [*program, *arguments])

    def _read(self) -> None:
        arrived = bytes(self.readAllStandardOutput().data())
        *lines, self._unread = (self._unread + self._decoder.decode(arrived)).split("\n")
        for line in lines:
            self.event_came.emit(_event(line))


def _event(line: str) -> Event:
    try:
        return from_line(line)  # type: ignore[return-value]
    except ValueError as error:
        return Failed("", f"The engine said something that is no event: {error}.")


def event_writer() -> Callable[[Event], None]:
    """In the process itself: what writes events, from any thread."""
    # What libraries print must not get between the events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    guard = threading.Lock()

    def send(event: Event) -> None:
        with guard:
            events.write(to_line(event))
            events.flush()

    return send
