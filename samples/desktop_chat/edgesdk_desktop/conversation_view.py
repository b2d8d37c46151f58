"""Shows the messages of a conversation, and the answer that is under way piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtWidgets import QLabel, QScrollArea, QVBoxLayout, QWidget

from edgesdk_desktop.conversations import StoredMessage
from edgesdk_desktop.message_view import MessageView
from edgesdk_desktop.theme import SPACE, Theme

# Pieces come faster than a person reads; each time that they are shown, markdown is read anew.
_SHOW_MS = 60
_MAX_WIDTH = 860
# So near to the end, a reader follows what is written.
_FOLLOWING = 60
_WRITING = "Writing… Escape stops it."


class ConversationView(QScrollArea):
    """The messages, one below the other.

    Signals:
        retry_wanted, edit_wanted, branch_wanted: see `MessageView`.
    """

    retry_wanted = Signal(str)
    edit_wanted = Signal(str)
    branch_wanted = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setAccessibleName("Messages")
        self._messages: list[MessageView] = []
        self._writing: MessageView | None = None
        self.text = ""
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_SHOW_MS)
        self._timer.timeout.connect(self._show_text)
        self._follow = True
        bar = self.verticalScrollBar()
        bar.valueChanged.connect(self._look)
        bar.rangeChanged.connect(self._scroll)

    def show_messages(
        self,
        messages: Sequence[StoredMessage],
        branches: Sequence[Sequence[str]],
        theme: Theme,
        writing: StoredMessage | None,
    ) -> None:
        """Show messages; the answer `writing` is under way, where it is among them."""
        whole = QWidget()
        whole.setObjectName("conversation")
        outer = QVBoxLayout(whole)
        outer.setContentsMargins(2 * SPACE, 2 * SPACE, 2 * SPACE, 2 * SPACE)
        column = QWidget()
        column.setMaximumWidth(_MAX_WIDTH)
        layout = QVBoxLayout(column)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2 * SPACE)
        self._messages, self._writing = [], None
        for message, others in zip(messages, branches, strict=True):
            view = MessageView(message, others, theme)
            view.retry_wanted.connect(self.retry_wanted)
            view.edit_wanted.connect(self.edit_wanted)
            view.branch_wanted.connect(self.branch_wanted)
            layout.addWidget(view)
            self._messages.append(view)
            if writing is not None and message.id == writing.id:
                # More of it has come than was written down.
                self._writing = view
                view.show_text(self.text)
                view.show_waiting(_WRITING if self.text else "Waiting for the first word…")
        if not messages:
            layout.addStretch()
            layout.addWidget(_empty())
        layout.addStretch()
        row = QVBoxLayout()
        row.addWidget(column)
        outer.addLayout(row)
        self._follow = True
        self.setWidget(whole)

    def add_piece(self, text: str) -> None:
        """Add a piece to the answer that is under way."""
        self.text += text
        if not self._timer.isActive():
            self._timer.start()

    def restart(self, words: str) -> None:
        """Begin the answer again, and say why."""
        self.text = ""
        self._timer.stop()
        if self._writing is not None:
            self._writing.show_text("")
            self._writing.show_waiting(words)

    def end_answer(self, text: str, state: str, badge: Mapping[str, Any]) -> None:
        """Show the whole answer, and how it came about."""
        self._timer.stop()
        if self._writing is not None:
            self._writing.show_text(text)
            self._writing.show_end(state, badge)
        self._writing, self.text = None, ""

    def message_views(self) -> tuple[MessageView, ...]:
        """The messages that are shown."""
        return tuple(self._messages)

    def _show_text(self) -> None:
        if self._writing is not None:
            self._writing.show_text(self.text)
            self._writing.show_waiting(_WRITING)

    def _look(self, value: int) -> None:
        self._follow = value >= self.verticalScrollBar().maximum() - _FOLLOWING

    def _scroll(self, _least: int, end: int) -> None:
        if self._follow:
            self.verticalScrollBar().setValue(end)


def _empty() -> QLabel:
    made = QLabel(
        "Ask something.\n\nAnswers are made on this device. What it is not sure of may go to"
        " the cloud, if you allow it below."
    )
    made.setObjectName("muted")
    made.setWordWrap(True)
    made.setAlignment(Qt.AlignmentFlag.AlignCenter)
    return made
