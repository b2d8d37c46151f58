"""Shows one message: its markdown, how it came about, and what can be done with it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QFrame, QHBoxLayout, QToolButton, QVBoxLayout, QWidget

from edgesdk_desktop.block_views import CodeView, DocumentView, action_button, small_label
from edgesdk_desktop.conversations import StoredMessage
from edgesdk_desktop.markdown_blocks import Block, Code, GrowingMarkdown, Prose
from edgesdk_desktop.theme import SPACE, Theme

# Of a message that somebody wrote: the rest of an attached file is shown when it is asked for.
_MAX_SHOWN = 4000

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
        self._markdown = GrowingMarkdown()
        self._blocks: list[tuple[Block, DocumentView | CodeView]] = []
        self.setObjectName(message.role)
        who = "You" if message.role == "user" else "Answer"
        self.setAccessibleName(who)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(2 * SPACE, SPACE, 2 * SPACE, SPACE)
        layout.setSpacing(SPACE // 2)
        self._body = QVBoxLayout()
        self._body.setSpacing(SPACE)
        layout.addLayout(self._body)
        self._badge = small_label("badge")
        self._note = small_label("warning")
        for label in (self._note, self._badge):
            label.setVisible(False)
            layout.addWidget(label)
        layout.addLayout(self._actions(branches))

    @property
    def characters_read(self) -> int:
        """How much markdown was parsed for what is shown now; what is settled is not."""
        return self._markdown.characters_read

    def show_text(self, text: str) -> None:
        """Show a text; blocks that stay as they were are left alone."""
        for _ in self._shown_in_steps(text):
            pass

    def build(self) -> Iterator[None]:
        """Show the message that was given, one block at a time."""
        yield from self._shown_in_steps(self.message.text)
        if self.message.role == "assistant":
            self.show_end(self.message.state, self.message.badge)

    def _shown_in_steps(self, text: str) -> Iterator[None]:
        self.text = text
        new = self._markdown.read(text) if self.message.role == "assistant" else self._typed(text)
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
            yield
            widget = _view_of(block, self._theme)
            self._body.addWidget(widget)
            self._blocks.append((block, widget))

    def tab_stops(self) -> list[QWidget]:
        """What the Tab key leads to, in the order of reading: the blocks, then the buttons."""
        buttons = self.findChildren(QToolButton, options=Qt.FindChildOption.FindDirectChildrenOnly)
        found: list[QWidget] = []
        for _, block in self._blocks:
            found += [block, *block.findChildren(QToolButton), *block.findChildren(DocumentView)]
        tabbed = Qt.FocusPolicy.TabFocus
        return [widget for widget in (*found, *buttons) if tabbed in widget.focusPolicy()]

    def show_end(self, state: str, badge: Mapping[str, Any]) -> None:
        """Show how an answer ended and how it came about."""
        note = _STATES.get(state, "")
        if badge.get("problem"):
            note = f"{note} {badge['problem']}"
        elif "budget" in str(badge.get("reason")) and state == "complete":
            note = "The limit of spending is reached: this is the device's own answer."
        elif badge.get("low_confidence") and state == "complete":
            note = "Do not rely on this answer: nobody was sure of it."
        self._note.setText(note)
        self._note.setVisible(bool(note))
        for _, widget in self._blocks:
            if isinstance(widget, CodeView):
                widget.recolour()
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
        if isinstance(block, Prose) and isinstance(widget, DocumentView):
            widget.show_prose(block)
        elif isinstance(block, Code) and isinstance(widget, CodeView):
            widget.show_code(block)
        else:
            return False
        self._blocks[number] = (block, widget)
        return True

    def _typed(self, text: str) -> tuple[Prose, ...]:
        """What a person typed, as it was typed; not all of a long text."""
        hidden = len(text) - _MAX_SHOWN
        if hidden > 0:
            self._note.setText(f"{hidden:,} more characters are not shown. Copy takes them too.")
            self._note.setVisible(True)
        escaped = html.escape(text[:_MAX_SHOWN])
        return (Prose(f'<p style="white-space: pre-wrap; margin: 0">{escaped}</p>'),)

    def _actions(self, branches: Sequence[str]) -> QHBoxLayout:
        row = QHBoxLayout()
        row.setSpacing(SPACE // 2)
        message = self.message
        copy = action_button("Copy", "Copy this message")
        copy.clicked.connect(lambda: QGuiApplication.clipboard().setText(self.text))
        row.addWidget(copy)
        if message.role == "user":
            edit = action_button("Edit", "Change this message and ask again")
            edit.clicked.connect(lambda: self.edit_wanted.emit(message.id))
            row.addWidget(edit)
        else:
            retry = action_button("Retry", "Ask for another answer")
            retry.clicked.connect(lambda: self.retry_wanted.emit(message.id))
            row.addWidget(retry)
        if len(branches) > 1:
            at = list(branches).index(message.id)
            for words, name, to in (
                ("‹", "Show the branch before", at - 1),
                ("›", "Show the next branch", at + 1),
            ):
                button = action_button(words, name)
                button.setEnabled(0 <= to < len(branches))
                button.clicked.connect(lambda _=False, to=to: self.branch_wanted.emit(branches[to]))
                row.addWidget(button)
            place = small_label("muted")
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


def _view_of(block: Block, theme: Theme) -> DocumentView | CodeView:
    if isinstance(block, Code):
        return CodeView(block, theme)
    document = DocumentView(theme)
    document.show_prose(block)
    return document
