"""The window for somebody who does not see it, or has no mouse; and what may be attached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edgesdk_desktop import protocol
from edgesdk_desktop.cloud_dialog import CloudDialog
from edgesdk_desktop.composer import Composer
from edgesdk_desktop.dialogs import UploadDialog
from edgesdk_desktop.engine_client import EngineClient
from edgesdk_desktop.export_dialog import ExportDialog
from edgesdk_desktop.main_window import MainWindow
from PySide6.QtCore import Qt
from PySide6.QtGui import QAccessible
from PySide6.QtWidgets import (
    QAbstractButton,
    QComboBox,
    QLineEdit,
    QListWidget,
    QPlainTextEdit,
    QProgressBar,
    QTextBrowser,
    QWidget,
)
from pytestqt.qtbot import QtBot

_INTERACTIVE = (
    QAbstractButton, QComboBox, QLineEdit, QListWidget, QPlainTextEdit, QProgressBar, QTextBrowser,
)  # fmt: skip
_ANSWER = "Here:\n\n```py\nx = 1\n```\n\n| a |\n|---|\n| 1 |"


class SilentEngineClient(EngineClient):
    """Keeps what it is asked, and never answers."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[protocol.Request] = []

    def send(self, request: protocol.Request) -> None:
        self.requests.append(request)

    def close(self) -> None:
        """Nothing runs."""

    def asked(self) -> list[protocol.Ask]:
        return [request for request in self.requests if isinstance(request, protocol.Ask)]


@pytest.fixture
def engine(qtbot: QtBot) -> SilentEngineClient:
    return SilentEngineClient()


@pytest.fixture
def window(qtbot: QtBot, engine: SilentEngineClient, tmp_path: Path) -> Iterator[MainWindow]:
    made = MainWindow(tmp_path, engine)
    with qtbot.waitActive(made):
        made.show()
        made.activateWindow()
    engine.event_came.emit(protocol.Loaded("small", "CPU"))
    yield made
    made.close()


def _type(qtbot: QtBot, window: MainWindow, text: str) -> None:
    field = window.focusWidget()
    qtbot.keyClicks(field, text)
    qtbot.keyClick(field, Qt.Key.Key_Return)


def _end(engine: SilentEngineClient) -> None:
    ended = protocol.Answered(engine.asked()[-1].answer, _ANSWER, "complete", {"route": "local"})
    engine.event_came.emit(ended)


def _nameless(view: QWidget) -> list[str]:
    found = []
    for widget in view.findChildren(QWidget):
        # Parts that Qt makes itself have names that begin so.
        if isinstance(widget, _INTERACTIVE) and not widget.objectName().startswith("qt_"):
            name = QAccessible.queryAccessibleInterface(widget).text(QAccessible.Text.Name)
            if not name.strip():
                found.append(f"{type(widget).__name__} in {type(widget.parent()).__name__}")
    return found


def test_screen_readers_have_a_name_for_everything(
    qtbot: QtBot, window: MainWindow, engine: SilentEngineClient
) -> None:
    _type(qtbot, window, "Hello")
    _end(engine)
    shown = protocol.UploadShown(True, [], [], [], ["big"], "ask", "the default")
    views = (
        window, window.models, ExportDialog("", window), CloudDialog(protocol.SetCloud(), window),
        UploadDialog(shown, window),
    )  # fmt: skip
    assert {type(view).__name__: _nameless(view) for view in views} == {
        type(view).__name__: [] for view in views
    }


def test_a_conversation_needs_no_mouse(
    qtbot: QtBot, window: MainWindow, engine: SilentEngineClient
) -> None:
    _type(qtbot, window, "Hello")
    assert engine.asked()[0].text == "Hello"
    qtbot.keyClick(window, Qt.Key.Key_Escape)
    assert isinstance(engine.requests[-1], protocol.Stop)
    _end(engine)

    # Back from the field to the last button of the answer.
    qtbot.waitUntil(lambda: window.parts.view.complete)
    qtbot.keyClick(window.focusWidget(), Qt.Key.Key_Backtab)
    assert window.focusWidget().accessibleName() == "Ask for another answer"
    qtbot.keyClick(window.focusWidget(), Qt.Key.Key_Space)
    assert [ask.text for ask in engine.asked()] == ["Hello", "Hello"]
    _end(engine)

    control = Qt.KeyboardModifier.ControlModifier
    qtbot.keyClick(window, Qt.Key.Key_F, control)
    assert window.focusWidget() is window.parts.sidebar.search
    qtbot.keyClick(window, Qt.Key.Key_N, control)
    # The button is seen to go down first.
    qtbot.waitUntil(lambda: not window.parts.view.message_views())
    qtbot.keyClick(window, Qt.Key.Key_L, control)
    _type(qtbot, window, "Another")
    assert engine.asked()[-1].path == []
    _end(engine)
    qtbot.keyClick(window, Qt.Key.Key_M, control)
    assert window.models.isVisible()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Grüße 你好".encode(), "Grüße 你好"),
        (b"\xef\xbb\xbfmarked", "marked"),
        ("Grüße".encode("utf-16"), "Grüße"),
        ("Grüße".encode("latin-1"), None),
        (b"\x7fELF\x00\x01", None),
        (b"x" * 1_000_001, None),
    ],
    ids=["utf-8", "utf-8 with a mark", "utf-16", "latin-1", "binary", "too large"],
)
def test_only_text_is_attached(qtbot: QtBot, tmp_path: Path, data: bytes, text: str | None) -> None:
    composer = Composer()
    qtbot.addWidget(composer)
    problems: list[str] = []
    composer.problem_found.connect(problems.append)
    (tmp_path / "file.txt").write_bytes(data)
    composer.attach(tmp_path / "file.txt")
    assert bool(problems) is (text is None)
    assert composer.message == ("" if text is None else f"File file.txt:\n```\n{text}\n```")


def test_what_is_too_long_for_the_model_is_not_sent(window: MainWindow) -> None:
    composer = window.parts.composer
    composer.field.setPlainText("Hello")
    assert composer.send.isEnabled()
    window._engine.event_came.emit(protocol.Counted(3000, 2048))
    assert not composer.send.isEnabled()
    assert "too long" in composer.weight.text()
