"""Exports a checkpoint to a bundle in the store, in a process that can be ended."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtGui import QCloseEvent
from PySide6.QtWidgets import (
    QDialog,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from edgesdk_desktop import protocol
from edgesdk_desktop.event_process import EventProcess
from edgesdk_desktop.theme import SPACE

_RESUMED = "The same export goes on from its last finished layer."


class ExportDialog(QDialog):
    """Asks for a checkpoint, shows how far its export is, and ends it where that is wanted.

    Signals:
        exported: the name of the new bundle.
    """

    exported = Signal(str)

    def __init__(self, checkpoint: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("Export a checkpoint")
        self.setMinimumWidth(560)
        self._process = EventProcess(self)
        self._process.event_came.connect(self._on_event)
        self._process.finished.connect(self._on_end)
        self._ended = True
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2 * SPACE, 2 * SPACE, 2 * SPACE, 2 * SPACE)
        layout.setSpacing(SPACE)
        title = QLabel("Export a checkpoint")
        title.setObjectName("title")
        explanation = QLabel(
            "A checkpoint is a folder with safetensors. The export quantizes it for this device,"
            " measures its quality, and puts the bundle into the store."
        )
        explanation.setObjectName("muted")
        explanation.setWordWrap(True)
        row = QHBoxLayout()
        self.checkpoint = QLineEdit(checkpoint)
        self.checkpoint.setPlaceholderText("A checkpoint of the store, or a folder")
        self.checkpoint.setAccessibleName("Checkpoint")
        self.checkpoint.textChanged.connect(self._update)
        self._choose = QPushButton("Choose…")
        self._choose.setAccessibleName("Choose a folder")
        self._choose.clicked.connect(self._choose_folder)
        row.addWidget(self.checkpoint)
        row.addWidget(self._choose)
        self.bar = QProgressBar()
        self.bar.setAccessibleName("Progress of the export")
        self.bar.setTextVisible(False)
        self.progress = QLabel()
        self.progress.setObjectName("muted")
        self.progress.setWordWrap(True)
        buttons = QHBoxLayout()
        buttons.addStretch()
        self.cancel = QPushButton("Close")
        self.cancel.clicked.connect(self._cancel)
        self.begin = QPushButton("Export")
        self.begin.setObjectName("primary")
        self.begin.setDefault(True)
        self.begin.clicked.connect(self._begin)
        buttons.addWidget(self.cancel)
        buttons.addWidget(self.begin)
        layout.addWidget(title)
        layout.addWidget(explanation)
        layout.addLayout(row)
        layout.addWidget(self.progress)
        layout.addWidget(self.bar)
        layout.addLayout(buttons)
        self._update()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 - Qt's name
        """End the export that is under way."""
        self._stop()
        super().closeEvent(event)

    def reject(self) -> None:
        """End the export that is under way, and close."""
        self._stop()
        super().reject()

    def _begin(self) -> None:
        self._ended = False
        self._on_event(protocol.ExportAdvanced("Starting", 0, 0))
        self._process.run("--export", self.checkpoint.text().strip())
        self._update()

    def _cancel(self) -> None:
        if self._ended:
            self.reject()
        else:
            self._stop()

    def _stop(self) -> None:
        if not self._ended:
            self._finish(f"Stopped. {_RESUMED}")
            self._process.kill()

    def _on_event(self, event: protocol.Event) -> None:
        if self._ended:
            return
        match event:
            case protocol.ExportAdvanced():
                self.progress.setText(" · ".join(p for p in (event.stage, event.note) if p))
                self.bar.setRange(0, event.total)
                self.bar.setValue(event.done)
            case protocol.CheckpointExported():
                self._finish(f"{event.name} is in the store: {event.quality}.")
                self.exported.emit(event.name)
            case protocol.Failed():
                self._finish(f"{event.message} {event.hint}".strip())

    def _on_end(self) -> None:
        if not self._ended:
            self._finish(f"The export ended unexpectedly. {_RESUMED}")
        self._update()

    def _finish(self, words: str) -> None:
        self._ended = True
        self.progress.setText(words)
        self._update()

    def _choose_folder(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Choose a checkpoint"):
            self.checkpoint.setText(folder)

    def _update(self) -> None:
        running = not self._ended
        given = bool(self.checkpoint.text().strip())
        ready = not running and self._process.state() == EventProcess.ProcessState.NotRunning
        self.begin.setEnabled(ready and given)
        for widget in (self.checkpoint, self._choose):
            widget.setEnabled(not running)
        self.cancel.setText("Stop" if running else "Close")
        self.bar.setVisible(running)
        self.progress.setVisible(bool(self.progress.text()))
        # What has just come into view needs room.
        self.adjustSize()
