"""What all chats share: one answer at a time, tool results, and a chat as one file."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Sequence as Items
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, field_validator

from edgesdk.engines.base import DecodeState
from edgesdk.errors import EmptyPrompt, RequestError
from edgesdk.text.prompts import as_messages
from edgesdk.tools.call_messages import Message, add_result, calls_of, unanswered_calls
from edgesdk.tools.calls import ToolCall


class AnswerLock:
    """Held by the answer that is under way; nobody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def begin(self) -> None:
        """An answer begins.

        Raises:
            RequestError: another one is under way.
        """
        if not self._lock.acquire(blocking=False):
            raise RequestError(
                "This chat is still answering.",
                hint="Read that stream to its end or close it first; use a chat per thread.",
            )

    def end(self) -> None:
        """It is over."""
        self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """`begin` and `end` around a block."""
        self.begin()
        try:
            yield
        finally:
            self.end()


def new_messages_of(prompt: str | None, turns: Sequence[Message]) -> list[Message]:
    """What a prompt adds to a conversation; nothing where it goes on from results of calls.

    Raises:
        RequestError: a call has no result yet.
        EmptyPrompt: there is nothing to answer.
    """
    waiting = unanswered_calls(turns)
    if waiting:
        raise RequestError(
            f"The model waits for the result of {', '.join(call.name for call in waiting)}.",
            hint="Give it with chat.add_tool_result(call, result); it may say that nothing was"
            " done.",
        )
    asked = [] if prompt is None else as_messages(prompt)
    if not asked and (not turns or turns[-1]["role"] != "tool"):
        raise EmptyPrompt("There is nothing to answer.", hint="Give a prompt.")
    return asked


def with_tool_result(turns: Sequence[Message], call: ToolCall, result: Any) -> list[Message]:
    """A conversation with what one of its calls gave: a text as it is, anything else as JSON.

    Raises:
        RequestError: no result of that call is waited for.
    """
    from edgesdk.tools.tool_loop import result_text

    if call.id not in {waiting.id for waiting in unanswered_calls(turns)}:
        raise RequestError(
            f"This chat waits for no result of the call {call.id!r} of {call.name!r}.",
            hint="Give one result for each of chat.pending_calls.",
        )
    return add_result(turns, call, result_text(result))


class SavedChat(BaseModel):
    """What a file holds of a conversation, the KV cache left out.

    Attributes:
        turns: the conversation, the system message left out.
        beside: what the kind of chat that wrote it keeps of its own.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    system: str | None
    turns: list[dict[str, JsonValue]]
    beside: dict[str, JsonValue] = {}

    @field_validator("turns")
    @classmethod
    def _have_roles(cls, turns: list[dict[str, JsonValue]]) -> list[dict[str, JsonValue]]:
        if not all(isinstance(message.get("role"), str) for message in turns):
            raise ValueError("a message has no role")
        for message in turns:
            calls_of(message)
        return turns


def save_chat(
    path: Path,
    state: DecodeState,
    *,
    system: str | None,
    turns: Items[dict[str, Any]],
    beside: Mapping[str, JsonValue] | None = None,
) -> None:
    """Write a conversation and the KV cache that `state` holds of it; see `SavedChat`.

    Raises:
        RequestError: `path` cannot be written; what stood there is untouched.
    """
    metadata = SavedChat(system=system, turns=list(turns), beside=dict(beside or {}))
    try:
        state.save(path, metadata.model_dump())
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written: {error.strerror}.", hint="Name another place."
        ) from None


def restore_chat(path: Path, state: DecodeState) -> SavedChat:
    """Fill `state` with what `save_chat` wrote; the rest of it comes back.

    Raises:
        RequestError: the file is damaged, of another model or engine, or holds no chat.
        ContextOverflow: it holds more tokens than this model was loaded for.
    """
    kept = state.restore(path)
    try:
        return SavedChat.model_validate(kept)
    except ValidationError:
        raise RequestError(
            f"{path} holds no chat.", hint="Give a file that Chat.save wrote."
        ) from None
