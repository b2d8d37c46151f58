"""A chat as one file: its messages ride as a note on the saved sequence."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, field_validator

from edgesdk.engines.base import Sequence
from edgesdk.errors import RequestError
from edgesdk.tools.messages import calls_of


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
    sequence: Sequence,
    *,
    system: str | None,
    turns: Items[dict[str, Any]],
    beside: Mapping[str, JsonValue] | None = None,
) -> None:
    """Write a conversation and the KV cache that `sequence` holds of it; see `SavedChat`.

    Raises:
        RequestError: `path` cannot be written; what stood there is untouched.
    """
    note = SavedChat(system=system, turns=list(turns), beside=dict(beside or {}))
    try:
        sequence.save(path, note.model_dump())
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written: {error.strerror}.", hint="Name another place."
        ) from None


def restore_chat(path: Path, sequence: Sequence) -> SavedChat:
    """Fill `sequence` with what `save_chat` wrote; the rest of it comes back.

    Raises:
        RequestError: the file is damaged, of another model or engine, or holds no chat.
        ContextOverflow: it holds more tokens than this model was loaded for.
    """
    kept = sequence.restore(path)
    try:
        return SavedChat.model_validate(kept)
    except ValidationError:
        raise RequestError(
            f"{path} holds no chat.", hint="Give a file that Chat.save wrote."
        ) from None
