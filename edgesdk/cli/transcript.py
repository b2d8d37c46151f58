"""A conversation as a file for people or programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesdk.cli.new_file import write_new


def save_transcript(path: Path, messages: Sequence[Mapping[str, Any]], *, model: str) -> None:
    """Write a conversation: Markdown to a .md file, JSON to any other.

    Raises:
        RequestError: something stands at `path`, or it cannot be written.
    """
    text = _markdown(messages) if path.suffix.lower() == ".md" else _json(messages, model)
    write_new(path, [text])


def _json(messages: Sequence[Mapping[str, Any]], model: str) -> str:
    fields = {"model": model, "messages": list(messages)}
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _markdown(messages: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"## {message['role'].capitalize()}\n\n{message['content']}\n" for message in messages]
    return "\n".join(parts)
