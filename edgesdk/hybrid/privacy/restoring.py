"""Puts the values back where an answer has placeholders."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgesdk.hybrid.privacy.vault import Vault


def restore(vault: Vault, text: str, written: Callable[[str], str] = str) -> str:
    """`text` with each placeholder of the conversation replaced by its value.

    Args:
        written: how a value stands in such a text; `in_json` where it is JSON.
    """
    pieces = []
    at = 0
    for spot in vault.reading.spots(text):
        value = vault.value(spot.placeholder)
        if value is not None:
            pieces += [text[at : spot.start], written(value)]
            at = spot.end
    return "".join([*pieces, text[at:]])


def in_json(value: str) -> str:
    """A text as it stands between the quotes of a JSON text."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def restore_json(vault: Vault, value: Any) -> Any:
    """A JSON value with all its texts restored, keys too: the arguments of a tool call."""
    if isinstance(value, str):
        return restore(vault, value)
    if isinstance(value, list):
        return [restore_json(vault, item) for item in value]
    if isinstance(value, dict):
        return {restore(vault, key): restore_json(vault, item) for key, item in value.items()}
    return value


class RestoringStream:
    """`restore` for an answer that comes in pieces, cut anywhere."""

    def __init__(self, vault: Vault, written: Callable[[str], str] = str) -> None:
        self._vault = vault
        self._written = written
        self._held = ""

    def feed(self, piece: str) -> str:
        """What is certain after `piece`; the start of a placeholder is kept back."""
        text = self._held + piece
        settled = self._vault.reading.settled(text)
        self._held = text[settled:]
        return restore(self._vault, text[:settled], self._written)

    def flush(self) -> str:
        """What is left at the end of the answer."""
        rest, self._held = self._held, ""
        return restore(self._vault, rest, self._written)
