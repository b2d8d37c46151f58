"""The parts of a message's content: text, pictures, sounds and files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from edgesdk.text.template import REASONING_KEYS

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


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """List the texts of a message's content: one, or one for each part that has one."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in parts_in([message]) if isinstance(part.get("text"), str)]


def texts_in(value: Any) -> list[str]:
    """Return every text inside a JSON value, keys and numbers too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [json.dumps(value)]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in texts_in(part)]
    if isinstance(value, Sequence):
        return [text for item in value for text in texts_in(item)]
    return []


def text_groups(messages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """List the texts of the messages, those together that are read as one.

    These are the parts of a message, and messages of the same role one after the other.
    """
    groups = groupby(messages, key=lambda message: message.get("role"))
    return [[text for message in group for text in texts_of(message)] for _, group in groups]


def without_reasoning(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages without what models thought before they answered. It is the device's
    own: it is not sent to a cloud, nor written down."""
    return [
        {key: item for key, item in message.items() if key not in REASONING_KEYS}
        for message in messages
    ]


def without_texts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return what else a message has, without the bytes of pictures, sounds and files."""
    rest = {key: item for key, item in message.items() if key != "content"}
    parts = [
        {key: item for key, item in part.items() if key != "text" or not isinstance(item, str)}
        for part in parts_in([message])
    ]
    return {**rest, "content": [_without_data(p) if is_media(p) else p for p in parts]}


def _without_data(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without_data(item) for key, item in value.items() if not is_data(key, item)}


def text_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join the text parts of each message, as templates take them; leave out other parts."""
    joined = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            texts = [str(part.get("text") or "") for part in parts_in([message])]
            message = {**message, "content": "\n".join(text for text in texts if text)}
        joined.append(dict(message))
    return joined
