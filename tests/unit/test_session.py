"""Chats that are saved, restored and forked, on a fake engine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_engine import FakeEngine, fake_model
from support.other_process import run_killed_python

from edgesdk.chat import Chat
from edgesdk.engines.saved_state import KvIdentity
from edgesdk.errors import EdgeError, InvalidOption, RequestError


def _talked(engine: FakeEngine | None = None) -> Chat:
    chat = fake_model(engine).chat("Be kind.")
    chat.respond("Hello")
    return chat


def test_a_restored_chat_goes_on_without_prefill(tmp_path: Path) -> None:
    chat = _talked()
    path = tmp_path / "a.chat"
    chat.save(path)
    engine = FakeEngine()
    restored = fake_model(engine).restore(path)
    assert restored.messages == chat.messages
    told = "system: Be kind.\nuser: Hello\n"
    reply = restored.respond("Go on")
    # All but the end token of the answer and the new message was in the file.
    assert reply.receipt.cached_tokens == len(told) + len("\x02Hello there.")
    assert engine.states[0].extended[0] == len("\x03user: Go on\n\x02")
    assert restored.messages[-1] == {"role": "assistant", "content": "Hello there."}


def test_a_chat_that_was_never_asked(tmp_path: Path) -> None:
    fake_model().chat("Be kind.").save(tmp_path / "a.chat")
    restored = fake_model().restore(tmp_path / "a.chat")
    assert restored.messages == [{"role": "system", "content": "Be kind."}]
    assert restored.respond("Hello").text == "Hello there."


def test_an_empty_answer_is_kept(tmp_path: Path) -> None:
    chat = _talked(FakeEngine(b""))
    chat.save(tmp_path / "a.chat")
    restored = fake_model().restore(tmp_path / "a.chat")
    assert restored.messages[-1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("field", "words"),
    [("engine", "another engine"), ("model", "another model"), ("layout", "another KV layout")],
)
def test_a_chat_of_another_origin_is_refused(tmp_path: Path, field: str, words: str) -> None:
    _talked().save(tmp_path / "a.chat")
    engine = FakeEngine()
    own = {"engine": "fake", "model": "00" * 32, "layout": "float32"}
    engine.kv_identity = KvIdentity(**(own | {field: "other"}))
    with pytest.raises(RequestError, match=words):
        fake_model(engine).restore(tmp_path / "a.chat")
    assert engine.states[0].closed


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"system": 3, "turns": []},
        {"system": None},
        {"system": None, "turns": [{"content": "no role"}]},
        {"system": None, "turns": ["text"]},
        {"system": None, "turns": [], "more": 1},
    ],
)
def test_a_saved_sequence_that_is_no_chat(tmp_path: Path, metadata: dict[str, object]) -> None:
    engine = FakeEngine()
    engine.new_state().save(tmp_path / "a.chat", json.loads(json.dumps(metadata)))
    with pytest.raises(RequestError, match="holds no chat"):
        fake_model(engine).restore(tmp_path / "a.chat")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damage_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "a.chat"
    if not path.exists():
        _talked().save(path)
    whole = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(whole) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=8))
    damaged = whole[:start] + junk + whole[start + data.draw(st.integers(0, 8)) :]
    if damaged == whole:
        return
    bad = tmp_path / "bad.chat"
    bad.write_bytes(damaged)
    with pytest.raises(EdgeError):
        fake_model().restore(bad)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be written"):
        _talked().save(tmp_path / "absent" / "a.chat")
    with pytest.raises(RequestError, match="cannot be read"):
        fake_model().restore(tmp_path / "absent.chat")


@pytest.mark.parametrize(
    ("place", "reason"),
    [("", "it is a folder"), ("folder-link", "it is a folder"), ("null-link", "it is a device")],
)
def test_a_save_replaces_nothing_but_a_file(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "folder-link").symlink_to(tmp_path)
    (tmp_path / "null-link").symlink_to(os.devnull)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RequestError, match=f"cannot be written: {reason}"):
        _talked().save(tmp_path / place)
    assert sorted(tmp_path.iterdir()) == before
    assert Path(os.devnull).is_char_device()


_KILLED = """
import os, signal, sys
from support.fake_engine import fake_model
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
chat = fake_model().chat("Be kind.")
chat.respond("Hello")
chat.save(sys.argv[1])
"""


def test_a_save_that_is_killed_leaves_nothing_but_the_old_chat(tmp_path: Path) -> None:
    path = tmp_path / "a.chat"
    _talked().save(path)
    before = path.read_bytes()
    run_killed_python(_KILLED, str(path))
    if hasattr(os, "O_TMPFILE"):
        assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
    _talked().save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_save_replaces_the_file_whole(tmp_path: Path) -> None:
    chat = _talked()
    path = tmp_path / "a.chat"
    chat.save(path)
    chat.respond("More")
    chat.save(path)
    assert fake_model().restore(path).messages == chat.messages
    assert list(tmp_path.iterdir()) == [path]


def test_a_fork_goes_its_own_way_from_a_warm_cache() -> None:
    engine = FakeEngine()
    chat = _talked(engine)
    before = chat.messages
    twin = chat.fork()
    reply = twin.respond("Twin")
    assert reply.receipt.cached_tokens == len("system: Be kind.\nuser: Hello\n\x02Hello there.")
    assert chat.messages == before
    assert chat.respond("Own").receipt.cached_tokens == reply.receipt.cached_tokens
    assert [m["content"] for m in twin.messages[-2:]] == ["Twin", "Hello there."]
    twin.close()
    assert not engine.states[0].closed


def test_nothing_is_kept_of_a_chat_while_it_answers(tmp_path: Path) -> None:
    chat = _talked()
    stream = chat.stream("More")
    next(stream)
    for act in (chat.fork, chat.reset, chat.close, lambda: chat.save(tmp_path / "a.chat")):
        with pytest.raises(RequestError, match="still answering"):
            act()
    stream.close()
    chat.save(tmp_path / "a.chat")


def test_an_unknown_overflow_policy() -> None:
    with pytest.raises(InvalidOption, match="drop_oldest_turns"):
        fake_model().chat(overflow="truncate")  # type: ignore[arg-type]
