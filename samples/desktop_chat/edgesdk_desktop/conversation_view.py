"""Shows the messages of a conversation, and the answer that is under way piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QScrollArea, QVBoxLayout, QWidget

from edgesdk_desktop.conversations import StoredMessage
from edgesdk_desktop.message_view import MessageView
from edgesdk_desktop.theme import LIGHT, SPACE, Theme

# Pieces come faster than a person reads.
_SHOW_MS = 60
# Messages that are shown at first, and with each scrolling to the start.
_PAGE = 12
_BUILD_SECONDS = 0.008
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
        self._builder = QTimer(self)
        self._builder.setInterval(0)
        self._builder.timeout.connect(self._make_some)
        self._build: Iterator[None] = iter(())
        self._branches: Callable[[StoredMessage], Sequence[str]] = lambda _: ()
        # The messages, of which the views begin with the one at `_first`; how many are wanted.
        self._path: list[StoredMessage] = []
        self._first = self._wanted = self._below = 0
        self._clear(LIGHT)
        self._follow = True
        bar = self.verticalScrollBar()
        bar.valueChanged.connect(self._look)
        bar.rangeChanged.connect(self._scroll)

    def show_messages(
        self,
        messages: Sequence[StoredMessage],
        branches: Callable[[StoredMessage], Sequence[str]],
        theme: Theme,
        writing: StoredMessage | None,
    ) -> None:
        """Show the end of a conversation; what is before it comes when somebody scrolls there.

        Views that stay as they are stay. Others are made from the last one on, little by little, so
        that the window answers meanwhile.

        Args:
            branches: gives the ids of the messages beside one.
            writing: the answer that is under way, where it is among them.
        """
        self._build = iter(())
        old, self._path = self._path, list(messages)
        same = 0
        if theme is self._theme:
            while same < min(len(old), len(messages)) and old[same].id == messages[same].id:
                same += 1
        if same <= self._first or len(messages) - same > _PAGE:
            self._clear(theme)
            if writing is not None:
                # The answer that is under way, and its question, are there at once.
                self._first = max(0, len(messages) - 2)
        else:
            for view in self._messages[same - self._first :]:
                view.hide()
                view.deleteLater()
            del self._messages[same - self._first :]
        self._branches = branches
        self._empty.setVisible(not messages)
        self._writing = None
        for message in self._path[self._first + len(self._messages) :]:
            view = self._made(message)
            self._messages.append(view)
            self._column.insertWidget(len(self._messages), view)
            view.show_text(message.text)
            if message.role == "assistant":
                view.show_end(message.state, message.badge)
        if writing is not None and self._messages and self._messages[-1].message.id == writing.id:
            self._writing = self._messages[-1]
            # More of it has come than was written down.
            self._writing.show_text(self.text)
            self._writing.show_waiting(_WRITING if self.text else "Waiting for the first word…")
        self._follow = True
        self._wanted = min(len(messages), max(_PAGE, len(self._messages)))
        self._builder.start()

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
            self._order_tab_stops()
        self._writing, self.text = None, ""

    @property
    def complete(self) -> bool:
        """Whether all views that were wanted are made."""
        return not self._builder.isActive()

    def message_views(self) -> tuple[MessageView, ...]:
        """The messages that are shown."""
        return tuple(self._messages)

    def _show_text(self) -> None:
        if self._writing is not None:
            self._writing.show_text(self.text)
            self._writing.show_waiting(_WRITING)

    def _look(self, value: int) -> None:
        bar = self.verticalScrollBar()
        self._follow = value >= bar.maximum() - _FOLLOWING
        if self.complete:
            self._want_more()

    def _want_more(self) -> None:
        """Make another page where somebody reads near the first message that is shown."""
        bar = self.verticalScrollBar()
        near = not self._follow and bar.value() < bar.pageStep()
        if self._first > 0 and self.isVisible() and (near or bar.maximum() == 0):
            self._wanted = min(len(self._path), len(self._messages) + _PAGE)
            self._builder.start()

    def _scroll(self, _least: int, end: int) -> None:
        bar = self.verticalScrollBar()
        if self._follow:
            bar.setValue(end)
        elif not self.complete:
            # What is made above pushes down what is read.
            bar.setValue(end - self._below)
        self._below = end - bar.value()

    def _order_tab_stops(self) -> None:
        """Let the Tab key go through the messages before it comes to the composer."""
        before: QWidget = self
        for view in self._messages:
            for widget in view.tab_stops():
                QWidget.setTabOrder(before, widget)
                before = widget

    def _made(self, message: StoredMessage) -> MessageView:
        view = MessageView(message, self._branches(message), self._theme)
        view.retry_wanted.connect(self.retry_wanted)
        view.edit_wanted.connect(self.edit_wanted)
        view.branch_wanted.connect(self.branch_wanted)
        return view

    def _make_some(self) -> None:
        """Make views, for as long as nobody notices."""
        end = time.perf_counter() + _BUILD_SECONDS
        self._below = self.verticalScrollBar().maximum() - self.verticalScrollBar().value()
        while time.perf_counter() < end:
            if next(self._build, self) is self:
                if len(self._messages) >= self._wanted:
                    self._builder.stop()
                    self._order_tab_stops()
                    self._want_more()
                    return
                self._first -= 1
                view = self._made(self._path[self._first])
                self._messages.insert(0, view)
                self._column.insertWidget(1, view)
                self._build = view.build()

    def _clear(self, theme: Theme) -> None:
        """Begin with an empty column."""
        self._theme = theme
        self._messages, self._first = [], len(self._path)
        whole = QWidget()
        whole.setObjectName("conversation")
        row = QHBoxLayout(whole)
        row.setContentsMargins(2 * SPACE, 2 * SPACE, 2 * SPACE, 2 * SPACE)
        column = QWidget()
        column.setMaximumWidth(_MAX_WIDTH)
        row.addWidget(column)
        self._column = QVBoxLayout(column)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(2 * SPACE)
        self._empty = _empty()
        self._column.addWidget(self._empty)
        self._column.addStretch()
        self.setWidget(whole)


def _empty() -> QLabel:
    made = QLabel(
        "Ask something.\n\nAnswers are made on this device. What it is not sure of may go to"
        " the cloud, if you allow it below."
    )
    made.setObjectName("muted")
    made.setWordWrap(True)
    made.setAlignment(Qt.AlignmentFlag.AlignCenter)
    return made
