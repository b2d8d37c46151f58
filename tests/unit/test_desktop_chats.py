"""Which chat goes on with a message, and what it need not compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edgesdk_desktop.chats import ChatCache
from support.fake_engine import FakeEngine, fake_model

from edgesdk.hybrid.client import HybridClient


def _path(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(b"Yes.")


@pytest.fixture
def client(engine: FakeEngine) -> HybridClient:
    return HybridClient(fake_model(engine))


def test_the_next_message_goes_on_in_the_same_chat(client: HybridClient) -> None:
    chats = ChatCache(client)
    first = chats.chat_of([])
    first.respond("One?")
    assert chats.chat_of(_path("One?", "Yes.")) is first


def test_a_changed_message_keeps_what_is_before_it_and_the_other_branch(
    client: HybridClient,
) -> None:
    chats = ChatCache(client)
    chat = chats.chat_of([])
    for question in ("One?", "Two?", "Three?"):
        chat.respond(question)

    branch = chats.chat_of(_path("One?", "Yes."))

    assert branch is not chat
    assert branch.messages == _path("One?", "Yes.")
    assert branch.respond("Other?").receipt.cached_tokens > 10
    assert len(chat.messages) == 6
    assert chats.chat_of(chat.messages) is chat


def test_what_the_model_never_said_is_added(client: HybridClient) -> None:
    chats = ChatCache(client)
    chats.chat_of([]).respond("One?")
    path = _path("One?", "Yes.", "Two?", "I was stop")
    chat = chats.chat_of(path)
    assert chat.messages == path
    assert chat.respond("Three?").receipt.cached_tokens > 10


def test_a_session_is_restored_where_it_has_more(client: HybridClient, tmp_path: Path) -> None:
    saved = str(tmp_path / "one.chat")
    chat = client.chat()
    chat.respond("One?")
    chat.save(saved)
    restored = ChatCache(client).chat_of(_path("One?", "Yes."), saved)
    assert restored.respond("Two?").receipt.cached_tokens > 10
    for file in (saved, str(tmp_path / "gone.chat")):
        other = ChatCache(client).chat_of(_path("Else?", "No."), file)
        assert other.messages == _path("Else?", "No.")
    (tmp_path / "bad.chat").write_bytes(b"no chat")
    assert ChatCache(client).chat_of([], str(tmp_path / "bad.chat")).messages == []


def test_few_caches_are_kept(client: HybridClient, engine: FakeEngine) -> None:
    chats = ChatCache(client)
    for number in range(6):
        chats.chat_of(_path(f"{number}?", "Yes.")).respond("More?")
    assert sum(not state.closed for state in engine.states) == 3
    chats.close()
    assert all(state.closed for state in engine.states)
