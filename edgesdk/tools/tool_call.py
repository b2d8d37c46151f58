"""A call of a tool, as a model asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for.

    Attributes:
        arguments: JSON values by name.
        problem: why it cannot be run as it was written; None if it can.
        id: tells it from other calls of its conversation; "" where the model gave it none and
            nobody else has yet.
    """

    name: str
    arguments: dict[str, Any]
    problem: str | None = None
    id: str = ""
