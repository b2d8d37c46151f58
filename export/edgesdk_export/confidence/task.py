"""A task whose right answer is known by how it was made, and what tells that an answer is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol

from edgesdk_export.confidence.answer_reading import (
    code_line,
    final_part,
    json_in,
    letter_in,
    names,
    numbers_in,
)
from edgesdk_export.confidence.arithmetic import compute

Language = Literal["en", "zh", "de", "es"]
Style = Literal["number", "letter", "brief", "sentence", "steps", "json", "tool_call", "code"]
LANGUAGES: tuple[Language, ...] = ("en", "zh", "de", "es")


class KnownAnswer(Protocol):
    """What is right, in one task."""

    def in_text(self, text: str) -> bool:
        """Whether a text, without its reasoning, says it and nothing else."""

    def in_value(self, value: Any) -> bool:
        """Whether a value out of JSON is it."""

    def schema(self) -> dict[str, Any]:
        """The JSON schema of such values."""


@dataclass(frozen=True)
class KnownNumber:
    """Implements `KnownAnswer`: the last number of the text is `value`."""

    value: Fraction

    def in_text(self, text: str) -> bool:
        found = numbers_in(text)
        return bool(found) and self.value in found[-1]

    def in_value(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return False
        return self.in_text(str(value))

    def schema(self) -> dict[str, Any]:
        return {"type": "number"}


@dataclass(frozen=True)
class KnownNumbers:
    """Implements `KnownAnswer`: the last numbers of the text are `values`, in this order."""

    values: tuple[Fraction, ...]

    def in_text(self, text: str) -> bool:
        found = numbers_in(text)[-len(self.values) :]
        return len(found) == len(self.values) and all(
            value in readings for value, readings in zip(self.values, found, strict=True)
        )

    def in_value(self, value: Any) -> bool:
        if isinstance(value, list):
            return len(value) == len(self.values) and self.in_text(" ".join(map(str, value)))
        return isinstance(value, str) and self.in_text(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "number"}, "maxItems": len(self.values) + 4}


@dataclass(frozen=True)
class KnownName:
    """Implements `KnownAnswer`: one of `spellings` is named, and none of `rivals`."""

    spellings: tuple[str, ...]
    rivals: tuple[str, ...]

    def in_text(self, text: str) -> bool:
        return any(names(text, each) for each in self.spellings) and not any(
            names(text, each) for each in self.rivals
        )

    def in_value(self, value: Any) -> bool:
        return isinstance(value, str) and self.in_text(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "maxLength": 60}


@dataclass(frozen=True)
class KnownFields:
    """Implements `KnownAnswer`: an object that has these fields and no other."""

    fields: Mapping[str, str | int]

    def in_text(self, text: str) -> bool:
        return self.in_value(json_in(text))

    def in_value(self, value: Any) -> bool:
        return (
            isinstance(value, dict)
            and value.keys() == self.fields.keys()
            and all(_same(value[name], field) for name, field in self.fields.items())
        )

    def schema(self) -> dict[str, Any]:
        kinds = {
            name: {"type": "integer"} if isinstance(field, int) else {"type": "string"}
            for name, field in self.fields.items()
        }
        return {
            "type": "object",
            "properties": kinds,
            "required": list(kinds),
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class PriorTask:
    """A question in one language and style, and its answer.

    Attributes:
        level: how hard it is, from 0.
        letter: of the right option, in the style "letter"; else None.
        function: to be called, in the style "tool_call"; else None.
    """

    kind: str
    level: int
    language: Language
    style: Style
    prompt: str
    answer: KnownAnswer
    letter: str | None = None
    function: str | None = None

    def right(self, text: str) -> bool:
        """Whether an answer of the model is right."""
        match self.style:
            case "letter":
                # Who gives the option's text has chosen, too.
                return letter_in(text) == self.letter or (
                    letter_in(text) is None and self.answer.in_text(text)
                )
            case "steps":
                return self.answer.in_text(final_part(text))
            case "json":
                value = json_in(text)
                if isinstance(self.answer, KnownFields):
                    return self.answer.in_value(value)
                return isinstance(value, dict) and self.answer.in_value(value.get("answer"))
            case "tool_call":
                call = json_in(text)
                return (
                    isinstance(call, dict)
                    and call.get("name") == self.function
                    and self.answer.in_value(call.get("arguments"))
                )
            case "code":
                computed = compute(code_line(text))
                return computed is not None and self.answer == KnownNumber(computed)
            case _:
                return self.answer.in_text(text)

    def schema(self) -> dict[str, Any] | None:
        """The output format that it is asked in; None for free text."""
        if self.style != "json":
            return None
        inner = self.answer.schema()
        if isinstance(self.answer, KnownFields):
            return inner
        return {
            "type": "object",
            "properties": {"answer": inner},
            "required": ["answer"],
            "additionalProperties": False,
        }


def _same(value: object, field: str | int) -> bool:
    if isinstance(field, int):
        return KnownNumber(Fraction(field)).in_value(value)
    return isinstance(value, str) and value.strip().casefold() == field.casefold()
