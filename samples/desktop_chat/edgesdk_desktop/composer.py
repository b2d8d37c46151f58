"""Where the next message is written: text, attached files, what it weighs, and who may see it."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import (
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from edgesdk_desktop.protocol import Privacy
from edgesdk_desktop.theme import SPACE

_MAX_FILE_BYTES = 1_000_000
_PRIVACY: tuple[tuple[str, Privacy, str], ...] = (
    ("Local only", "local_only", "Nothing leaves this device."),
    ("Ask before sending", "ask", "You see each message before it leaves, and decide."),
    ("Redact and allow", "redact", "What is private is replaced before it leaves."),
)


@dataclass(frozen=True)
class Attachment:
    """A text file that goes along with a message."""

    name: str
    text: str

    def as_markdown(self) -> str:
        """The file as the model is given it."""
        fence = "`" * max(3, _longest_run(self.text) + 1)
        return f"File {self.name}:\n{fence}\n{self.text}\n{fence}"


class Composer(QWidget):
    """The field for the next message.

    Signals:
        send_wanted: the whole message, files included.
        stop_wanted: end the answer that is under way.
        preview_wanted: show what a cloud would be sent.
        text_changed: some time after the last change.
        problem_found: why a file cannot be attached.
    """

    send_wanted = Signal(str)
    stop_wanted = Signal()
    preview_wanted = Signal()
    text_changed = Signal()
    problem_found = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._attachments: list[Attachment] = []
        self._answering = False
        self._ready = False
        self._too_long = False
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2 * SPACE, SPACE, 2 * SPACE, 2 * SPACE)
        self._files = QHBoxLayout()
        layout.addLayout(self._files)
        self.field = _Field()
        self.field.setAccessibleName("Message")
        self.field.setPlaceholderText("Write a message. Enter sends it, Shift+Enter begins a line.")
        self.field.setFixedHeight(84)
        self.field.setTabChangesFocus(True)
        layout.addWidget(self.field)
        row = QHBoxLayout()
        row.setSpacing(SPACE)
        attach = QPushButton("Attach")
        attach.setAccessibleName("Attach a text file")
        attach.clicked.connect(self._choose_files)
        self.privacy_box = QComboBox()
        self.privacy_box.setAccessibleName("Privacy")
        for words, value, tip in _PRIVACY:
            self.privacy_box.addItem(words, value)
            self.privacy_box.setItemData(
                self.privacy_box.count() - 1, tip, Qt.ItemDataRole.ToolTipRole
            )
        self.preview = QPushButton("Preview")
        self.preview.setToolTip("Show exactly what a cloud would be sent")
        self.preview.setAccessibleName("Show what a cloud would be sent")
        self.preview.clicked.connect(self.preview_wanted)
        self.weight = QLabel()
        self.weight.setObjectName("muted")
        self.send = QPushButton("Send")
        self.send.setObjectName("primary")
        self.send.clicked.connect(self._send)
        for widget in (attach, self.privacy_box, self.preview):
            row.addWidget(widget)
        row.addStretch()
        row.addWidget(self.weight)
        row.addWidget(self.send)
        layout.addLayout(row)
        self._changed = QTimer(self)
        self._changed.setSingleShot(True)
        self._changed.setInterval(300)
        self._changed.timeout.connect(self.text_changed)
        self.field.textChanged.connect(self._changed.start)
        self.field.textChanged.connect(self._update)
        self.field.entered.connect(self._send)
        self._update()

    @property
    def privacy(self) -> Privacy:
        """Who may see the next message."""
        value: Privacy = self.privacy_box.currentData()
        return value

    def set_privacy(self, value: str) -> None:
        """Choose who may see the next message."""
        found = self.privacy_box.findData(value)
        self.privacy_box.setCurrentIndex(max(0, found))

    @property
    def message(self) -> str:
        """The next message, files included."""
        parts = [self.field.toPlainText().strip(), *(a.as_markdown() for a in self._attachments)]
        return "\n\n".join(part for part in parts if part)

    def set_message(self, text: str) -> None:
        """Write a message into the field, to be changed."""
        self.field.setPlainText(text)
        self.field.moveCursor(self.field.textCursor().MoveOperation.End)
        self.field.setFocus()

    def set_state(self, *, ready: bool, answering: bool) -> None:
        """Say whether a model is loaded, and whether it answers right now."""
        self._ready, self._answering = ready, answering
        self._update()

    def show_weight(self, tokens: int, context: int) -> None:
        """Show how much of the context the conversation takes with the next message."""
        self._too_long = tokens > context
        over = " - too long for this model" if self._too_long else ""
        self.weight.setText(f"{tokens:,} of {context:,} tokens{over}")
        self._update()

    def attach(self, path: Path) -> None:
        """Attach a text file."""
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ValueError("it is larger than 1 MB")
            text = _decoded(path.read_bytes())
        except UnicodeError:
            self.problem_found.emit(f"{path.name} cannot be attached: it is no UTF-8 text.")
            return
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            self.problem_found.emit(f"{path.name} cannot be attached: {why}.")
            return
        attachment = Attachment(path.name, text)
        self._attachments.append(attachment)
        chip = QToolButton()
        chip.setText(f"{path.name}  ×")
        chip.setAccessibleName(f"Remove {path.name}")

        def remove() -> None:
            self._attachments.remove(attachment)
            chip.deleteLater()
            self.text_changed.emit()
            self._update()

        chip.clicked.connect(remove)
        self._files.addWidget(chip, alignment=Qt.AlignmentFlag.AlignLeft)
        self.text_changed.emit()
        self._update()

    def clear(self) -> None:
        """Forget the message and its files."""
        self._attachments.clear()
        while item := self._files.takeAt(0):
            if (widget := item.widget()) is not None:
                widget.deleteLater()
        self.field.clear()

    def _choose_files(self) -> None:
        names, _ = QFileDialog.getOpenFileNames(self, "Attach text files")
        for name in names:
            self.attach(Path(name))

    def _send(self) -> None:
        if self._answering:
            self.stop_wanted.emit()
        elif self.send.isEnabled():
            self.send_wanted.emit(self.message)

    def _update(self) -> None:
        self.send.setText("Stop" if self._answering else "Send")
        can_send = self._ready and bool(self.message) and not self._too_long
        self.send.setEnabled(self._answering or can_send)
        self.preview.setEnabled(self._ready and bool(self.message) and not self._answering)


class _Field(QPlainTextEdit):
    """A field in which Enter sends."""

    entered = Signal()

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802 - Qt's name
        enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.entered.emit()
            return
        super().keyPressEvent(event)


def _decoded(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 where a mark says so; raises UnicodeError."""
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if marked else "utf-8-sig")
    if "\0" in text:
        raise UnicodeError("binary data")
    return text


def _longest_run(text: str) -> int:
    """The most backticks in a row."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest
