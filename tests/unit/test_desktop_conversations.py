"""Conversations of the desktop chat: a tree of messages on the disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from edgesdk_desktop.conversations import (
    ConversationStore,
    messages_for_model,
    strictest_privacy,
)


@pytest.fixture
def store(tmp_path: Path) -> ConversationStore:
    return ConversationStore(tmp_path / "chats" / "conversations.db")


def test_messages_are_on_the_disk_at_once(store: ConversationStore, tmp_path: Path) -> None:
    conversation = store.create()
    asked = store.add(conversation.id, None, "user", "Hi\nthere", "complete")
    answer = store.add(conversation.id, asked.id, "assistant", "", "writing")
    store.update(answer.id, "Hel", "writing")

    # A crash: the first store is never closed.
    again = ConversationStore(tmp_path / "chats" / "conversations.db")

    (found,) = again.find()
    assert (found.title, found.head) == ("Hi…", answer.id)
    assert [(m.text, m.state) for m in again.path(found.head)] == [
        ("Hi\nthere", "complete"), ("Hel", "writing"),
    ]  # fmt: skip


def test_branches_are_beside_each_other_and_go_on_with_their_latest(
    store: ConversationStore,
) -> None:
    conversation = store.create()
    first = store.add(conversation.id, None, "user", "One", "complete")
    answer = store.add(conversation.id, first.id, "assistant", "1", "complete")
    follow = store.add(conversation.id, answer.id, "user", "More", "complete")
    other = store.add(conversation.id, None, "user", "Two", "complete")

    assert store.branches(first) == [first.id, other.id]
    assert store.branches(answer) == [answer.id]
    assert [m.text for m in store.path(store.get(conversation.id).head)] == ["Two"]
    store.show(first.id)
    assert store.get(conversation.id).head == follow.id
    assert [m.text for m in store.path(follow.id)] == ["One", "1", "More"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("paris", 1),
        ("PARIS", 1),
        ("巴黎", 1),
        ("100%", 1),
        ("1000", 0),
        ("_", 0),
        ("", 2),
        ("\\", 0),
    ],
)
def test_search_looks_into_titles_and_messages(
    store: ConversationStore, query: str, found: int
) -> None:
    for texts in (("Hello", "Paris is 巴黎, 100% sure"), ("Other", "Nothing")):
        conversation, parent = store.create(), None
        for role, text in zip(("user", "assistant"), texts, strict=True):
            parent = store.add(conversation.id, parent, role, text, "complete").id  # type: ignore[arg-type]
    assert len(store.find(query)) == found


def test_deleting_takes_the_messages_along(store: ConversationStore, tmp_path: Path) -> None:
    conversation = store.create()
    message = store.add(conversation.id, None, "user", "Secret", "complete")
    store.rename(conversation.id, " Mine ")
    assert store.get(conversation.id).title == "Mine"
    store.delete(conversation.id)
    with pytest.raises(KeyError):
        store.message(message.id)
    database = sqlite3.connect(tmp_path / "chats" / "conversations.db")
    assert database.execute("SELECT COUNT(*) FROM message").fetchone() == (0,)


def test_spending_is_the_sum_of_all_answers(store: ConversationStore) -> None:
    assert store.money_spent() == 0
    conversation = store.create()
    for money in (0.25, 0.5, None):
        message = store.add(conversation.id, None, "assistant", "x", "complete")
        store.update(message.id, "x", "complete", {"money": money})
    assert store.money_spent() == 0.75


def test_a_model_is_given_whole_turns_under_their_strictest_rule(store: ConversationStore) -> None:
    conversation = store.create()
    parent = None
    for role, text, badge in (
        ("user", "One", {"privacy": "ask"}), ("assistant", "1", {}),
        ("user", "Lost", {"privacy": "local_only"}), ("assistant", " ", {}),
        ("user", "Three", {"privacy": "redact"}), ("assistant", "3", {}),
    ):  # fmt: skip
        message = store.add(conversation.id, parent, role, text, "complete")  # type: ignore[arg-type]
        store.update(message.id, text, "complete", badge)
        parent = message.id
    path = store.path(parent)
    assert [m["content"] for m in messages_for_model(path)] == ["One", "1", "Three", "3"]
    assert strictest_privacy(path, "redact") == "local_only"
    assert strictest_privacy(path[:2], "redact") == "ask"
    assert strictest_privacy([], "redact") == "redact"
