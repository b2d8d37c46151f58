"""Writes a conversation of another API in the form of OpenAI's chat completions."""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]


class ConversationWriter:
    """Writes messages one after another. What was said first to the model is one message, because
    many templates take a system message at the beginning only.

    Attributes:
        messages: as `/v1/chat/completions` takes them.
    """

    def __init__(self, messages: list[Json] | None = None) -> None:
        self.messages: list[Json] = list(messages or [])
        self._reasoning: list[str] = []

    def add_system(self, text: str) -> None:
        """Instructions of the developer."""
        last = self.messages[-1] if self.messages else None
        if not text:
            return
        if last is not None and last["role"] == "system" and len(self.messages) == 1:
            self.messages[-1] = {**last, "content": f"{last['content']}\n\n{text}"}
        else:
            self.messages.append({"role": "system", "content": text})

    def add_user(self, content: str | list[Json]) -> None:
        """What the user says: a text, or parts."""
        self.messages.append({"role": "user", "content": content})

    def add_reasoning(self, text: str) -> None:
        """What the assistant thought before what it says next."""
        if text:
            self._reasoning.append(text)

    def add_answer(self, text: str) -> None:
        """What the assistant said."""
        message: Json = {"role": "assistant", "content": text}
        if self._reasoning:
            message["reasoning_content"] = "\n".join(self._reasoning)
            self._reasoning = []
        self.messages.append(message)

    def add_call(self, key: str, name: str, arguments: str | Json) -> None:
        """A call of a tool, which joins the assistant's message before it."""
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "assistant":
            self.add_answer("")
        message = self.messages[-1]
        written = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call = {"id": key, "type": "function", "function": {"name": name, "arguments": written}}
        self.messages[-1] = {**message, "tool_calls": [*message.get("tool_calls", ()), call]}

    def add_result(self, key: str, content: str | list[Json]) -> None:
        """The result of a call."""
        self.messages.append({"role": "tool", "tool_call_id": key, "content": content})
