"""The engine's side of the desktop chat: the cloud's key, what it may cost, and exporting."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from edgesdk_desktop import protocol
from edgesdk_desktop.engine_process import EngineProcess
from edgesdk_desktop.export_dialog import ExportDialog
from keyring.backend import KeyringBackend
from keyring.backends.fail import Keyring as NoKeyring
from keyrings.alt.file import PlaintextKeyring
from PySide6.QtCore import Qt
from pytestqt.qtbot import QtBot
from support.fake_engine import FakeEngine, fake_model
from support.talking_cloud import TalkingCloud, said
from support.tiny_models import make_tiny

from edgesdk.store import Store

pytestmark = pytest.mark.e2e
_PATIENCE = 60.0


class AskedEngine:
    """An engine process in this one, with a model that says "No.", and what it answers."""

    def __init__(self) -> None:
        self._events: queue.Queue[protocol.Event] = queue.Queue()
        self._process = EngineProcess(self._events.put)
        self._process._model = fake_model(FakeEngine(b"No."))

    def ask(self, request: protocol.Request) -> protocol.Event:
        """What the last event after a request is."""
        self._process.handle(request)
        while True:
            event = self._events.get(timeout=_PATIENCE)
            if not isinstance(event, protocol.AnswerPiece | protocol.Restarted):
                return event

    def close(self) -> None:
        self._process.close()


@pytest.fixture
def asked() -> Iterator[AskedEngine]:
    made = AskedEngine()
    yield made
    made.close()


@pytest.fixture
def use_keyring() -> Iterator[None]:
    before = keyring.get_keyring()
    yield
    keyring.set_keyring(before)


def _file_keyring(folder: Path) -> KeyringBackend:
    made = PlaintextKeyring()
    made.file_path = str(folder / "keyring.cfg")
    return made


@pytest.mark.usefixtures("use_keyring")
def test_the_key_is_in_the_keyring_and_nowhere_else(asked: AskedEngine, tmp_path: Path) -> None:
    keyring.set_keyring(_file_keyring(tmp_path))
    with TalkingCloud(lambda body: said("Yes.")) as cloud:
        assert asked.ask(protocol.SetCloud(cloud.url, "big", "sk-planted")) == protocol.CloudSet(
            f"big at {cloud.url.removeprefix('http://').partition('/')[0]}"
        )
        # Another start of the window, which does not know the key.
        keyring.set_keyring(_file_keyring(tmp_path))
        asked.ask(protocol.SetCloud(cloud.url, "big"))
        asked.ask(protocol.Ask("a", [], "Write a poem.", "redact"))
        assert "sk-planted" in cloud.sent().decode()
        asked.ask(protocol.SetCloud(cloud.url, "big", ""))
        assert keyring.get_password("edgesdk desktop", cloud.url) is None


@pytest.mark.usefixtures("use_keyring")
def test_without_a_keyring_the_key_is_used_and_forgotten(asked: AskedEngine) -> None:
    keyring.set_keyring(NoKeyring())
    event = asked.ask(protocol.SetCloud("http://127.0.0.1:9/v1", "big", "sk-planted"))
    assert isinstance(event, protocol.CloudSet)
    assert "no keyring" in event.note
    assert "sk-planted" not in str(event)
    event = asked.ask(protocol.SetCloud("http://127.0.0.1:9/v1", "big"))
    assert isinstance(event, protocol.CloudSet)


@pytest.mark.usefixtures("use_keyring")
def test_no_more_is_spent_than_was_allowed(asked: AskedEngine, tmp_path: Path) -> None:
    keyring.set_keyring(_file_keyring(tmp_path))
    with TalkingCloud(lambda body: said("Yes.")) as cloud:
        unpriced = protocol.SetCloud(cloud.url, "big", daily_limit=1.0)
        refused = asked.ask(unpriced)
        assert isinstance(refused, protocol.Failed)
        assert "prices" in refused.message
        file = str(tmp_path / "spending.db")
        prices = {"input_price": 1e4, "output_price": 1e4, "budget_file": file}
        for limit, route in ((0.0, "local"), (1e6, "cloud")):
            asked.ask(protocol.SetCloud(cloud.url, "big", daily_limit=limit, **prices))  # type: ignore[arg-type]
            answer = asked.ask(protocol.Ask("a", [], "Write a poem.", "redact"))
            assert isinstance(answer, protocol.Answered)
            assert answer.badge["route"] == route
            assert ("budget" in answer.badge["reason"]) is (route == "local")
        assert answer.badge["money"] > 0


def test_a_checkpoint_is_exported_from_the_window(
    qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path / "home"))
    make_tiny("llama", tmp_path / "tiny")
    dialog = ExportDialog(str(tmp_path / "none"))
    qtbot.addWidget(dialog)
    dialog.show()
    qtbot.mouseClick(dialog.begin, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(dialog.begin.isEnabled, timeout=int(1e3 * _PATIENCE))
    assert "none" in dialog.progress.text()
    assert "Traceback" not in dialog.progress.text()

    # One that is stopped leaves no bundle.
    dialog.checkpoint.setText(str(tmp_path / "tiny"))
    qtbot.mouseClick(dialog.begin, Qt.MouseButton.LeftButton)
    assert dialog.cancel.text() == "Stop"
    qtbot.mouseClick(dialog.cancel, Qt.MouseButton.LeftButton)
    assert "Stopped" in dialog.progress.text()
    qtbot.waitUntil(dialog.begin.isEnabled, timeout=int(1e3 * _PATIENCE))
    assert not Store(tmp_path / "home").list()

    with qtbot.waitSignal(dialog.exported, timeout=int(2e3 * _PATIENCE)):
        qtbot.mouseClick(dialog.begin, Qt.MouseButton.LeftButton)
    assert "in the store" in dialog.progress.text()
    assert [entry.name for entry in Store(tmp_path / "home").list()] == ["tiny"]
