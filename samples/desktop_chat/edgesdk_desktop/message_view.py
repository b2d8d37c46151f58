"""Shows one message: its markdown, how it came about, and what can be done with it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound
from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QGuiApplication, QResizeEvent, QTextOption, QWheelEvent
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QSizePolicy,
    QTextBrowser,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from edgesdk_desktop.conversations import StoredMessage
from edgesdk_desktop.markdown_blocks import Block, Code, Prose, markdown_blocks
from edgesdk_desktop.theme import SPACE, Theme, document_css

_STATES = {
    "writing": "This answer was interrupted.",
    "stopped": "Stopped.",
    "cut": "This answer is not whole.",
    "failed": "There is no answer.",
}


class MessageView(QFrame):
    """One message of a conversation.

    Signals:
        retry_wanted: the id of an answer to ask for again.
        edit_wanted: the id of a message of the user to change.
        branch_wanted: the id of the message of another branch to show.
    """

    retry_wanted = Signal(str)
    edit_wanted = Signal(str)
    branch_wanted = Signal(str)

    def __init__(self, message: StoredMessage, branches: Sequence[str], theme: Theme) -> None:
        super().__init__()
        self.message = message
        self.text = message.text
        self._theme = theme
        self._blocks: list[tuple[Block, QWidget]] = []
        self.setObjectName(message.role)
        who = "You" if message.role == "user" else "Answer"
        self.setAccessibleName(who)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2 * SPACE, SPACE, 2 * SPACE, SPACE)
        layout.setSpacing(SPACE // 2)
        self._body = QVBoxLayout()
        self._body.setSpacing(SPACE)
        layout.addLayout(self._body)
        self._badge = _label("badge")
        self._note = _label("warning")
        for label in (self._note, self._badge):
            label.setVisible(False)
            layout.addWidget(label)
        layout.addLayout(self._actions(branches))
        self.show_text(message.text)
        if message.role == "assistant":
            self.show_end(message.state, message.badge)

    def show_text(self, text: str) -> None:
        """Show a text; blocks that stay as they were are left alone."""
        self.text = text
        new = markdown_blocks(text) if self.message.role == "assistant" else (_plain(text),)
        same = 0
        while same < min(len(new), len(self._blocks)) and new[same] == self._blocks[same][0]:
            same += 1
        if same < min(len(new), len(self._blocks)) and self._updated(same, new[same]):
            same += 1
        for _, widget in self._blocks[same:]:
            self._body.removeWidget(widget)
            widget.deleteLater()
        del self._blocks[same:]
        for block in new[same:]:
            widget = _widget_of(block, self._theme)
            self._body.addWidget(widget)
            self._blocks.append((block, widget))

    def show_end(self, state: str, badge: Mapping[str, Any]) -> None:
        """Show how an answer ended and how it came about."""
        note = _STATES.get(state, "")
        if badge.get("problem"):
            note = f"{note} {badge['problem']}"
        elif badge.get("low_confidence") and state == "complete":
            note = "Do not rely on this answer: nobody was sure of it."
        self._note.setText(note)
        self._note.setVisible(bool(note))
        self._badge.setText(badge_text(badge))
        self._badge.setVisible(bool(self._badge.text()))

    def show_waiting(self, words: str) -> None:
        """Show what is waited for."""
        self._badge.setText(words)
        self._badge.setVisible(True)
        self._note.setVisible(False)

    def _updated(self, number: int, block: Block) -> bool:
        """Show a block in the widget of another one, where that is of the same kind."""
        _, widget = self._blocks[number]
        if isinstance(block, Prose) and isinstance(widget, _Document):
            widget.setHtml(block.html)
        elif isinstance(block, Code) and isinstance(widget, _CodeView):
            widget.show_code(block)
        else:
            return False
        self._blocks[number] = (block, widget)
        return True

    def _actions(self, branches: Sequence[str]) -> QHBoxLayout:
        row = QHBoxLayout()
        row.setSpacing(SPACE // 2)
        message = self.message
        copy = _action("Copy", "Copy this message")
        copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.text))
        row.addWidget(copy)
        if message.role == "user":
            edit = _action("Edit", "Change this message and ask again")
            edit.clicked.connect(lambda: self.edit_wanted.emit(message.id))
            row.addWidget(edit)
        else:
            retry = _action("Retry", "Ask for another answer")
            retry.clicked.connect(lambda: self.retry_wanted.emit(message.id))
            row.addWidget(retry)
        if len(branches) > 1:
            at = list(branches).index(message.id)
            for words, name, to in (
                ("‹", "Show the branch before", at - 1),
                ("›", "Show the next branch", at + 1),
            ):
                button = _action(words, name)
                button.setEnabled(0 <= to < len(branches))
                button.clicked.connect(lambda _=False, to=to: self.branch_wanted.emit(branches[to]))
                row.addWidget(button)
            place = _label("muted")
            place.setText(f"{at + 1} of {len(branches)}")
            row.addWidget(place)
        row.addStretch()
        return row


def badge_text(badge: Mapping[str, Any]) -> str:
    """One line: who answered, why, how fast, how sure."""
    if not badge.get("route"):
        return ""
    local = badge["route"] == "local"
    parts = ["On this device" if local else "Cloud", str(badge.get("where") or "")]
    if badge.get("reason"):
        parts.append(f"why: {badge['reason']}")
    if badge.get("tokens_per_second"):
        parts.append(f"{badge['tokens_per_second']:.1f} tokens/s")
    if badge.get("first_token") is not None:
        parts.append(f"first token {badge['first_token']:.2f} s")
    if badge.get("cached_tokens"):
        parts.append(f"{badge['cached_tokens']:,} tokens from the cache")
    if badge.get("confidence") is not None:
        parts.append(f"confidence {badge['confidence']:.2f}")
    if badge.get("money"):
        parts.append(f"cost {badge['money']:.4g}")
    return " · ".join(part for part in parts if part)


class _Document(QTextBrowser):
    """Rich text that is as high as it needs to be; what is around it scrolls."""

    def __init__(self, theme: Theme, *, wrap: bool = True) -> None:
        super().__init__()
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setOpenExternalLinks(True)
        self.setTabChangesFocus(True)
        self.document().setDocumentMargin(0)
        self.document().setDefaultStyleSheet(document_css(theme))
        if not wrap:
            self.setWordWrapMode(QTextOption.WrapMode.NoWrap)
        self.document().contentsChanged.connect(self._fit)

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        return QSize(super().sizeHint().width(), self.height())

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        self._fit()

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802 - Qt's name
        # The conversation scrolls, not the block in it.
        event.ignore()

    def _fit(self) -> None:
        height = int(self.document().size().height()) + 2
        bar = self.horizontalScrollBar()
        if bar.maximum() > 0:
            height += bar.sizeHint().height()
        if height != self.height():
            self.setFixedHeight(height)


class _CodeView(QFrame):
    """Highlighted code with its language and a button that copies it."""

    def __init__(self, code: Code, theme: Theme) -> None:
        super().__init__()
        self.setObjectName("code")
        self._theme = theme
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE, SPACE // 2, SPACE, SPACE)
        head = QHBoxLayout()
        self._language = _label("codehead")
        copy = _action("Copy code", "Copy this code")
        copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(self._code.text))
        head.addWidget(self._language)
        head.addStretch()
        head.addWidget(copy)
        layout.addLayout(head)
        self._document = _Document(theme, wrap=False)
        layout.addWidget(self._document)
        self.show_code(code)

    def show_code(self, code: Code) -> None:
        """Show other code."""
        self._code = code
        self._language.setText(code.language or "text")
        self._document.setHtml(_highlighted(code, self._theme))


def _widget_of(block: Block, theme: Theme) -> QWidget:
    if isinstance(block, Code):
        return _CodeView(block, theme)
    document = _Document(theme)
    document.setHtml(block.html)
    return document


def _plain(text: str) -> Prose:
    """What a person typed, as it was typed."""
    escaped = html.escape(text)
    return Prose(f'<p style="white-space: pre-wrap; margin: 0">{escaped}</p>')


def _highlighted(code: Code, theme: Theme) -> str:
    try:
        lexer = get_lexer_by_name(code.language or "text", stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text", stripnl=False)
    formatter = HtmlFormatter(
        noclasses=True, style=theme.code_style, nobackground=True,
        prestyles="font-family: monospace; margin: 0",
    )  # fmt: skip
    return str(highlight(code.text, lexer, formatter))


def _label(name: str) -> QLabel:
    made = QLabel()
    made.setObjectName(name)
    made.setWordWrap(True)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    return made


def _action(words: str, name: str) -> QToolButton:
    made = QToolButton()
    made.setText(words)
    made.setToolTip(name)
    made.setAccessibleName(name)
    return made
