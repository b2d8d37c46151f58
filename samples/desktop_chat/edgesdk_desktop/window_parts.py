"""The parts of the main window: conversations at the left, messages and composer at the right."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from edgesdk_desktop.composer import Composer
from edgesdk_desktop.conversation_view import ConversationView
from edgesdk_desktop.sidebar import Sidebar
from edgesdk_desktop.theme import SPACE


class WindowParts(QWidget):
    """The widgets of the main window, in their places."""

    def __init__(self) -> None:
        super().__init__()
        columns = QHBoxLayout(self)
        columns.setContentsMargins(0, 0, 0, 0)
        columns.setSpacing(0)
        self.sidebar = Sidebar()
        columns.addWidget(self.sidebar)
        right = QVBoxLayout()
        right.setContentsMargins(0, 0, 0, 0)
        right.setSpacing(0)
        columns.addLayout(right)
        right.addLayout(self._head())
        self.banner = QFrame()
        self.banner.setObjectName("banner")
        banner = QHBoxLayout(self.banner)
        self.banner_text = QLabel()
        self.banner_text.setWordWrap(True)
        banner.addWidget(self.banner_text)
        self.banner.setVisible(False)
        around = QHBoxLayout()
        around.setContentsMargins(2 * SPACE, 0, 2 * SPACE, 0)
        around.addWidget(self.banner)
        right.addLayout(around)
        self.view = ConversationView()
        right.addWidget(self.view, 1)
        self.cancel_edit = QPushButton("Cancel the change")
        self.cancel_edit.setVisible(False)
        right.addWidget(self.cancel_edit, alignment=Qt.AlignmentFlag.AlignHCenter)
        self.composer = Composer()
        right.addWidget(self.composer)

    def tell(self, words: str, *, wrong: bool = False) -> None:
        """Tell a person something above the messages; nothing takes it away."""
        self.banner_text.setText(words)
        self.banner_text.setObjectName("danger" if wrong else "plain")
        self.banner_text.style().polish(self.banner_text)
        self.banner.setVisible(bool(words))

    def show_model(self, model: str, placement: str = "", *, loading: bool = False) -> None:
        """Show which model answers or is loaded, and where it runs; "" for none."""
        words = f"Loading {_short(model)}…" if loading else _short(model) or "Choose a model"
        self.model_button.setText(words)
        self.model_button.setToolTip(f"{model or 'No model'}. Choose another one: Ctrl+M")
        self.placement.show_line(placement)

    def show_spending(self, money: float) -> None:
        """Show what clouds have cost so far, in the currency of their prices."""
        self.spending.setText(f"Spent so far: {money:.4g}")

    def _head(self) -> QHBoxLayout:
        head = QHBoxLayout()
        head.setContentsMargins(2 * SPACE, SPACE, 2 * SPACE, SPACE)
        head.setSpacing(SPACE)
        self.model_button = QPushButton("Choose a model")
        self.model_button.setToolTip("Choose a model (Ctrl+M)")
        self.model_button.setAccessibleName("Model")
        self.placement = _Line("Where the model runs")
        self.placement.setMinimumWidth(40)
        self.spending = QLabel()
        self.spending.setObjectName("muted")
        self.cloud_button = QPushButton("No cloud")
        self.cloud_button.setAccessibleName("Cloud endpoint")
        self.theme_button = QPushButton("Dark")
        self.theme_button.setAccessibleName("Light or dark")
        head.addWidget(self.model_button)
        head.addWidget(self.placement, 1)
        for widget in (self.spending, self.cloud_button, self.theme_button):
            head.addWidget(widget)
        return head


class _Line(QLabel):
    """Small text on one line, cut where there is no room; the tip has all of it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._whole = ""
        self.setObjectName("muted")
        self.setAccessibleName(name)

    def show_line(self, text: str) -> None:
        """Show a text."""
        self._whole = text
        self.setToolTip(text)
        self._cut()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        self._cut()

    def _cut(self) -> None:
        fits = self.fontMetrics().elidedText(
            self._whole, Qt.TextElideMode.ElideRight, max(0, self.width())
        )
        if fits != self.text():
            self.setText(fits)


def _short(model: str) -> str:
    """The name of a model; of one that a path stands for, the path's end."""
    return model if len(model) < 40 else f"…{Path(model).name[-36:]}"
