"""What a conversation needs that the device's model may not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgesdk.hybrid.gate.features import Messages
from edgesdk.hybrid.gate.objection import Objection
from edgesdk.hybrid.parts import media_in, parts_in
from edgesdk.runtime import Runtime

# By the types that OpenAI's API has for parts of a message.
_SENSES = {
    "image_url": "vision",
    "input_image": "vision",
    "image": "vision",
    "input_audio": "hearing",
    "audio": "hearing",
    "video_url": "vision",
    "file": "files",
    "input_file": "files",
}
_LACKS = {
    "vision": "the prompt has pictures, which the device's model cannot see",
    "hearing": "the prompt has sound, which the device's model cannot hear",
    "files": "the prompt has files, which the device's model cannot read",
    "parts": "the prompt has parts that the device's model does not know",
}


def senses_lacking(messages: Messages) -> Objection | None:
    """What makes an answer of the device impossible: engines know tokens of text, nothing else."""
    for media in media_in(messages):
        gate = _SENSES.get(media, "parts")
        return Objection(gate, _LACKS[gate])
    return None


def tools_lacking(messages: Messages, runtime: Runtime, offered: bool) -> Objection | None:
    """Whether the conversation is about tools that the model was not trained to use. It can go on
    with it all the same, told in words, but seldom well."""
    used = offered or any(
        message.get("tool_calls") or message.get("role") == "tool" for message in messages
    )
    if used and not runtime.dialect.tools:
        return Objection("tools", "the device's model was not trained to use tools")
    return None


def in_words(messages: Messages) -> list[dict[str, Any]]:
    """The messages with their parts of text put together, as chat templates take them; other
    parts are left out."""
    told = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            texts = [str(part.get("text") or "") for part in parts_in([message])]
            message = {**message, "content": "\n".join(text for text in texts if text)}
        told.append(dict(message))
    return told
