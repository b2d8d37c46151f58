"""The real window with a real model: ask, stop, change, branch, restart, crash, and the cloud.

EDGESDK_SCREENSHOTS names a folder for pictures of each view.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edgesdk_desktop import protocol
from edgesdk_desktop.dialogs import UploadDialog
from edgesdk_desktop.engine_client import EngineClient
from edgesdk_desktop.main_window import MainWindow
from edgesdk_desktop.message_view import MessageView
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot
from support.talking_cloud import TalkingCloud, said

pytestmark = pytest.mark.e2e
_PATIENCE_MS = 60_000
# Longer than what llama.cpp computes at once, so that something of it is in the cache.
_LONG = "I have a garden with apples, pears, plums, cherries and many berries. " * 6
_SECRET = "ann@example.com"


class Desktop:
    """A window over a folder, and what a person does with it."""

    def __init__(self, qtbot: QtBot, folder: Path, model: Path) -> None:
        self.bot, self.folder, self.model = qtbot, folder, model
        self.shown: list[protocol.UploadShown] = []
        self.permission = "no"
        self.open()

    def open(self) -> None:
        self.engine = EngineClient()
        self.engine.start()
        self.window = MainWindow(self.folder, self.engine, self._decide, max_tokens=48)
        self.window.show()

    def load(self) -> None:
        self.window.load(str(self.model))
        self.until(lambda: str(self.model) in self.window.parts.model_button.toolTip())

    def until(self, true: Callable[[], bool]) -> None:
        self.bot.waitUntil(true, timeout=_PATIENCE_MS)

    def say(self, text: str) -> MessageView:
        """Type a message, press Enter, and wait for the answer."""
        self.begin(text)
        return self.answer()

    def begin(self, text: str) -> None:
        field = self.window.parts.composer.field
        field.setPlainText(text)
        self.until(self.window.parts.composer.send.isEnabled)
        self.bot.keyClick(field, Qt.Key.Key_Return)

    def answer(self) -> MessageView:
        self.until(lambda: self.window.parts.composer.send.text() == "Send")
        return self.window.parts.view.message_views()[-1]

    def texts(self) -> list[str]:
        self.until(lambda: self.window.parts.view.complete)
        return [view.text for view in self.window.parts.view.message_views()]

    def picture(self, name: str, widget: QWidget | None = None) -> None:
        if folder := os.environ.get("EDGESDK_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.bot.wait(200)
            assert (widget or self.window).grab().save(str(Path(folder) / f"{name}.png"))

    def _decide(self, shown: protocol.UploadShown) -> str:
        self.shown.append(shown)
        return self.permission


@pytest.fixture
def desktop(qtbot: QtBot, tmp_path: Path, smollm2_gguf: Path) -> Iterator[Desktop]:
    made = Desktop(qtbot, tmp_path, smollm2_gguf)
    yield made
    made.window.close()


def _badge(view: MessageView) -> str:
    return view._badge.text()


def test_a_conversation_is_changed_branched_stopped_and_found_again(desktop: Desktop) -> None:
    desktop.picture("empty")
    desktop.load()
    answer = desktop.say(f"{_LONG} Name one fruit. 你好 🎉")
    first = answer.text
    assert first
    assert "On this device" in _badge(answer)
    assert "tokens/s" in _badge(answer)
    assert "confidence" in _badge(answer)

    follow = desktop.say("Name another.")
    assert "tokens from the cache" in _badge(follow)
    desktop.picture("conversation")

    # Change the second message: the first turn is not computed again, and both branches stay.
    desktop.window.edit(desktop.window.parts.view.message_views()[2].message.id)
    assert len(desktop.texts()) == 2
    assert desktop.window.parts.composer.field.toPlainText() == "Name another."
    changed = desktop.say("Name a vegetable.")
    assert "tokens from the cache" in _badge(changed)
    assert desktop.texts()[1:3] == [first, "Name a vegetable."]
    branches = desktop.window.store.branches(desktop.window.parts.view.message_views()[2].message)
    desktop.window.show_branch(branches[0])
    assert desktop.texts()[2:] == ["Name another.", follow.text]
    desktop.picture("branches")
    texts, conversation = desktop.texts(), desktop.window.store.find()[0].id

    # An answer that is stopped stays as far as it came.
    desktop.window.open(None)
    desktop.window.max_tokens = 1024
    desktop.begin("Tell me a long story about a dragon.")
    desktop.until(lambda: len(desktop.window.parts.view.text) > 5)
    desktop.picture("writing")
    desktop.bot.keyClick(desktop.window, Qt.Key.Key_Escape)
    stopped = desktop.answer()
    state = desktop.window.store.message(stopped.message.id)
    assert (state.state, state.text) == ("stopped", stopped.text)

    # After a restart all is there, and goes on without being computed again.
    desktop.window.close()
    desktop.open()
    assert desktop.texts() == ["Tell me a long story about a dragon.", stopped.text]
    desktop.load()
    desktop.window.open(conversation)
    assert desktop.texts() == texts
    again = desktop.say("Name a colour.")
    assert "tokens from the cache" in _badge(again)
    desktop.window.parts.sidebar.search.setText("vegetable")
    desktop.until(lambda: desktop.window.parts.sidebar.list.count() == 1)
    desktop.window.parts.sidebar.search.setText("nothing like it")
    desktop.until(lambda: desktop.window.parts.sidebar.list.count() == 0)


def test_what_is_private_is_shown_before_it_leaves(desktop: Desktop) -> None:
    desktop.load()
    window = desktop.window
    with TalkingCloud(lambda body: said("Dear Ann, ", "hello.")) as cloud:
        window.use_cloud(protocol.SetCloud(cloud.url, "big"))
        desktop.until(lambda: "big at" in window.parts.cloud_button.text())
        window.parts.composer.set_privacy("ask")
        window.parts.composer.set_message(
            f"Write a long letter to {_SECRET} about a strange dream."
        )
        desktop.bot.mouseClick(window.parts.composer.preview, Qt.MouseButton.LeftButton)
        desktop.until(lambda: bool(desktop.shown))
        (shown,) = desktop.shown
        assert (shown.asked, shown.kinds, shown.upload) == (False, ["EMAIL"], "ask")
        assert _SECRET not in str(shown.redacted)
        assert not cloud.requests
        dialog = UploadDialog(protocol.UploadShown(**{**vars(shown), "asked": True}), window)
        dialog.show()
        assert _SECRET not in dialog.redacted.toPlainText()
        assert _SECRET in dialog.as_it_is.toPlainText()
        desktop.picture("upload", dialog)
        dialog.close()

        desktop.permission = "redact"
        answer = desktop.say(window.parts.composer.message)
        asked = [shown for shown in desktop.shown if shown.asked]
        # The device's answer of so many words is never one that it is sure of.
        assert len(asked) == 1
        (body,) = cloud.bodies()
        assert body["messages"] == asked[0].redacted
        assert _SECRET not in cloud.sent().decode()
        assert answer.text == "Dear Ann, hello."
        assert "Cloud" in _badge(answer)
        desktop.picture("cloud")

        # Now everything is to stay here: nothing more is sent, with later messages neither.
        window.parts.composer.set_privacy("local_only")
        desktop.say("What is the capital of France?")
        window.parts.composer.set_privacy("redact")
        desktop.say(f"Write a long letter to {_SECRET} again.")
        assert len(cloud.requests) == 1


def test_an_engine_that_dies_takes_nothing_along(desktop: Desktop) -> None:
    desktop.load()
    desktop.window.max_tokens = 1024
    desktop.begin("Tell me a long story about a dragon.")
    desktop.until(lambda: len(desktop.window.parts.view.text) > 5)
    desktop.engine._process.kill()
    answer = desktop.answer()
    assert "started again" in answer._note.text()
    assert len(answer.text) > 5
    desktop.window.max_tokens = 48
    assert desktop.say("Name one fruit.").text
    desktop.window.toggle_theme()
    desktop.window.resize(900, 600)
    desktop.picture("narrow")


def test_what_is_wrong_is_said_in_words(desktop: Desktop, tmp_path: Path) -> None:
    window = desktop.window
    window.load(str(tmp_path / "no-model"))
    desktop.until(window.parts.banner.isVisible)
    assert "no-model" in window.parts.banner_text.text()
    assert "Traceback" not in window.parts.banner_text.text()
    desktop.picture("error")
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\xff\xfe")
    window.parts.composer.attach(picture)
    assert "no UTF-8 text" in window.parts.banner_text.text()
    notes = tmp_path / "notes.txt"
    notes.write_text("```\ncode\n```")
    window.parts.composer.attach(notes)
    assert window.parts.composer.message == "File notes.txt:\n````\n```\ncode\n```\n````"
    window.choose_model()
    desktop.until(lambda: window.models.list.count() > 0)
    desktop.picture("models", window.models)
    window.models.close()
