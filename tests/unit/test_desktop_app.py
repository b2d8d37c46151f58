"""What the window says where conversations cannot be read or kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgesdk_desktop import app
from edgesdk_desktop.conversations import ConversationStore
from PySide6.QtWidgets import QApplication, QMessageBox


def test_a_damaged_file_is_kept_and_a_new_one_begun(tmp_path: Path) -> None:
    file = tmp_path / "conversations.db"
    file.write_bytes(b"no database " * 1000)
    store = ConversationStore(file)
    assert store.damaged is not None
    assert store.damaged.read_bytes() == b"no database " * 1000
    store.create()
    store.close()
    again = ConversationStore(file)
    assert again.damaged is None
    assert len(again.find()) == 1


def test_a_folder_that_cannot_be_used_is_named(
    qapp: QApplication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(QMessageBox, "critical", lambda _parent, _title, words: said.append(words))
    monkeypatch.setattr(app, "QApplication", lambda _: qapp)
    # The engine is not needed for it.
    monkeypatch.setattr(app.EngineClient, "start", lambda _: None)
    file = tmp_path / "file"
    file.write_text("")
    assert app.main(file / "data") == 1
    assert str(file / "data") in said[0]
    assert "Traceback" not in said[0]
