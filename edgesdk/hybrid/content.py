"""The parts of a message's content: text, pictures, sounds and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# By the types that OpenAI's API has for them.
_TEXT = frozenset({"text", "input_text"})


def parts_in(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Iterate the content parts of all messages."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            for part in content:
                yield part if isinstance(part, Mapping) else {"type": "text", "text": str(part)}


def media_in(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the types of the parts that are not text: pictures, sounds, files."""
    return [str(part.get("type")) for part in parts_in(messages) if is_media(part)]


def is_media(part: Mapping[str, Any]) -> bool:
    """Whether a part is not text."""
    return part.get("type") not in _TEXT


def is_data(key: str, value: Any) -> bool:
    """Whether a field of a picture, sound or file holds its bytes, in base64."""
    return isinstance(value, str) and (key == "data" or value.startswith("data:"))


def text_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join the text parts of each message, as templates take them; leave out other parts."""
    found = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            texts = [str(part.get("text") or "") for part in parts_in([message])]
            message = {**message, "content": "\n".join(text for text in texts if text)}
        found.append(dict(message))
    return found
