"""Keeps the chats whose KV caches are worth having, and finds the one that a message goes on with.

A window may ask anywhere in a tree of messages: it asks again, changes an earlier message, goes to
another branch. Here is found which chat has most of the messages before that in its KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgesdk import HybridClient
from edgesdk.errors import EdgeError
from edgesdk.hybrid import HybridChat

# Each holds a KV cache.
_MAX_CHATS = 3
_Messages = Sequence[dict[str, Any]]


class ChatCache:
    """The chats of one client, the one that was used last at the end."""

    def __init__(self, client: HybridClient) -> None:
        self._client = client
        self._chats: list[HybridChat] = []

    def chat_of(self, path: _Messages, session: str = "") -> HybridChat:
        """A chat whose messages are `path`; what is in a KV cache is not computed again.

        Args:
            session: a file that `HybridChat.save` wrote, of a conversation that may start so.
        """
        chat = max(self._chats, key=lambda chat: _common_turns(chat, path), default=None)
        turns = 0 if chat is None else _common_turns(chat, path)
        if session and turns < _turns(path) and (restored := self._restored(session)) is not None:
            if _common_turns(restored, path) > turns:
                chat, turns = restored, _common_turns(restored, path)
            else:
                restored.close()
        if chat is None or turns == 0:
            chat, turns = self._client.chat(overflow="drop_oldest_turns"), 0
        elif turns < _turns(chat.messages):
            # The other branch stays as it is.
            chat = chat.fork()
            chat.rewind(turns)
        if missing := path[len(chat.messages) :]:
            chat.add_messages(missing)
        self._use(chat)
        return chat

    def close(self) -> None:
        """Free all KV caches."""
        while self._chats:
            self._chats.pop().close()

    def _use(self, chat: HybridChat) -> None:
        self._chats = [*(other for other in self._chats if other is not chat), chat]
        while len(self._chats) > _MAX_CHATS:
            self._chats.pop(0).close()

    def _restored(self, session: str) -> HybridChat | None:
        """The chat of a file; None where it is gone, or of another model."""
        if not Path(session).is_file():
            return None
        try:
            return self._client.restore(session, overflow="drop_oldest_turns")
        except EdgeError:
            return None


def _turns(messages: _Messages) -> int:
    return sum(message["role"] == "user" for message in messages)


def _common_turns(chat: HybridChat, path: _Messages) -> int:
    """How many turns of a chat `path` starts with."""
    same = 0
    for mine, theirs in zip(chat.messages, path, strict=False):
        if (mine["role"], mine["content"]) != (theirs["role"], theirs["content"]):
            break
        same += 1
    # A turn is whole only with its answer.
    return _turns(path[: same - same % 2])
