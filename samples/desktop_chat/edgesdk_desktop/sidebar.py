"""The list of conversations: search, open, rename, delete, begin a new one."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import (
    QInputDialog,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QMessageBox,
    QPushButton,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from edgesdk_desktop.conversations import Conversation
from edgesdk_desktop.theme import SPACE

_ID = Qt.ItemDataRole.UserRole


class Sidebar(QWidget):
    """The conversations.

    Signals:
        new_wanted: begin a conversation.
        opened: the id of a conversation to show.
        searched: what to look for.
        renamed: the id of a conversation, and its new title.
        deleted: the id of a conversation.
    """

    new_wanted = Signal()
    opened = Signal(str)
    searched = Signal(str)
    renamed = Signal(str, str)
    deleted = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("sidebar")
        self.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        self.setFixedWidth(260)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(SPACE, SPACE, SPACE, SPACE)
        layout.setSpacing(SPACE)
        self.new = QPushButton("New conversation")
        self.new.setShortcut("Ctrl+N")
        self.new.setToolTip("Begin a conversation (Ctrl+N)")
        self.new.clicked.connect(self.new_wanted)
        layout.addWidget(self.new)
        self.search = QLineEdit()
        self.search.setPlaceholderText("Search conversations")
        self.search.setAccessibleName("Search conversations")
        self.search.setClearButtonEnabled(True)
        for button in self.search.findChildren(QToolButton):
            button.setAccessibleName("Clear the search")
        layout.addWidget(self.search)
        self.list = QListWidget()
        self.list.setAccessibleName("Conversations")
        self.list.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setContextMenuPolicy(Qt.ContextMenuPolicy.ActionsContextMenu)
        layout.addWidget(self.list)
        self.empty = QLabel("No conversation yet.")
        self.empty.setObjectName("muted")
        self.empty.setAlignment(Qt.AlignmentFlag.AlignCenter)
        layout.addWidget(self.empty)
        for words, keys, slot in (("Rename", "F2", self._rename), ("Delete", "Del", self._delete)):
            action = QAction(words, self.list)
            action.setShortcut(keys)
            action.setShortcutContext(Qt.ShortcutContext.WidgetShortcut)
            action.triggered.connect(slot)
            self.list.addAction(action)
        self._typing = QTimer(self)
        self._typing.setSingleShot(True)
        self._typing.setInterval(150)
        self._typing.timeout.connect(lambda: self.searched.emit(self.search.text()))
        self.search.textChanged.connect(self._typing.start)
        self.list.currentItemChanged.connect(self._open)

    def show_conversations(self, found: Sequence[Conversation], current: str | None) -> None:
        """Show conversations, of which one is open."""
        self.list.blockSignals(True)
        self.list.clear()
        for conversation in found:
            item = QListWidgetItem(conversation.title)
            item.setData(_ID, conversation.id)
            item.setToolTip(conversation.title)
            self.list.addItem(item)
            if conversation.id == current:
                self.list.setCurrentItem(item)
        self.list.blockSignals(False)
        self.list.setVisible(bool(found))
        self.empty.setVisible(not found)
        self.empty.setText("Nothing is found." if self.search.text() else "No conversation yet.")

    def _open(self, item: QListWidgetItem | None) -> None:
        if item is not None:
            self.opened.emit(item.data(_ID))

    def _rename(self) -> None:
        item = self.list.currentItem()
        if item is None:
            return
        title, given = QInputDialog.getText(self, "Rename", "Title:", text=item.text())
        if given and title.strip():
            self.renamed.emit(item.data(_ID), title)

    def _delete(self) -> None:
        item = self.list.currentItem()
        if item is None:
            return
        question = f"Delete “{item.text()}” with all its messages?"
        if QMessageBox.question(self, "Delete", question) == QMessageBox.StandardButton.Yes:
            self.deleted.emit(item.data(_ID))
