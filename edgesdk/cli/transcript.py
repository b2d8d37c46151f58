"""A conversation as a file for people or programs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesdk.errors import RequestError


def save_transcript(path: Path, messages: Sequence[Mapping[str, Any]], *, model: str) -> None:
    """Write a conversation: Markdown to a .md file, JSON to any other.

    The file is written beside its place and then put there, whole.

    Raises:
        RequestError: something stands at `path`, or it cannot be written.
    """
    text = _markdown(messages) if path.suffix.lower() == ".md" else _json(messages, model)
    if path.exists():
        raise RequestError(f"{path} exists already.", hint="Name another file.")
    beside = None
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(beside).replace(path)
    except OSError as error:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)
        raise RequestError(f"{path} cannot be written: {error.strerror}.") from None


def _json(messages: Sequence[Mapping[str, Any]], model: str) -> str:
    fields = {"model": model, "messages": list(messages)}
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _markdown(messages: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"## {message['role'].capitalize()}\n\n{message['content']}\n" for message in messages]
    return "\n".join(parts)
