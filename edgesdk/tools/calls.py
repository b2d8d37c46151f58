"""Find tool calls in a model's answer.

Families write them in a few ways, all of them JSON with a name and arguments:

- Hermes, Qwen, SmolLM: `<tool_call>{...}</tool_call>`, one tag for each call or a list in one;
- Llama 3: the whole answer is `{"name": ..., "parameters": {...}}`, several after each other;
- Mistral: `[TOOL_CALLS][{...}, {...}]`, of which often only the list is text, each with an id;
- models that learned none of them well: the same in a code fence, or in braces twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TAG, _END_TAG = "<tool_call>", "</tool_call>"
# Marks before calls that some tokenizers spell out and others leave without text.
_MARKS = ("<|python_tag|>", "[TOOL_CALLS]")
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)```\s*\Z", re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")
_DECODER = json.JSONDecoder()


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


class ToolCalls(tuple[ToolCall, ...]):
    """The calls of one answer, in order: what an answer with tools is parsed to."""


def parse_calls(text: str) -> tuple[ToolCall, ...]:
    """Find the calls in an answer, in order; none where it is an answer to the user."""
    # Texts of a call may have a tag in them, so a tag counts only where the whole is no call.
    return _parse_untagged(text) or tuple(_parse_tagged(text))


def text_before_calls(text: str) -> str:
    """The words before the calls of an answer; "" where no mark separates the two."""
    if _parse_untagged(text):
        return ""
    places = [place for mark in (_TAG, *_MARKS) if (place := text.find(mark)) >= 0]
    return text[: min(places)].strip() if places else ""


def has_begun_calls(text: str) -> bool:
    """Whether an answer so far may hold calls, whole or not."""
    begins = text.lstrip().startswith(("{", "[", "```"))
    return begins or any(mark in text for mark in (_TAG, *_MARKS))


def _parse_untagged(text: str) -> tuple[ToolCall, ...]:
    """The calls of an answer that is nothing but calls; none where it is anything else."""
    body = text.strip()
    for mark in _MARKS:
        body = body.removeprefix(mark).lstrip()
    fenced = _FENCED.match(body)
    body = fenced[1].strip() if fenced else body
    if body.startswith("{{") and body.endswith("}}"):
        # So the template of Qwen2.5-Coder shows it, which was to be filled in by Python.
        body = body[1:-1]
    if not body.startswith(("{", "[")):
        return ()
    # Without a tag, JSON may as well be what the user asked for: it has to look like a call.
    calls = tuple(_parse_block(body, only_clear=True))
    return () if any(call.problem for call in calls) else calls


def _parse_tagged(text: str) -> Iterator[ToolCall]:
    at = text.find(_TAG)
    while at >= 0:
        start = at + len(_TAG)
        try:
            # The end is looked for behind the JSON, in whose texts it may stand too.
            end = _parse_values(text, start)[1]
        except (ValueError, RecursionError):
            end = start
        end = text.find(_END_TAG, end)
        yield from _parse_block(text[start : end if end >= 0 else len(text)])
        at = text.find(_TAG, end) if end >= 0 else -1


def _parse_block(block: str, *, only_clear: bool = False) -> Iterator[ToolCall]:
    try:
        values, end = _parse_values(block, 0)
        if end < len(block):
            _DECODER.raw_decode(block, end)
    except (ValueError, RecursionError) as error:
        yield ToolCall("", {}, f"The call is not valid JSON: {error}.")
        return
    if not values:
        yield ToolCall("", {}, "The call is empty.")
    for value in values:
        yield _parse_call(value, only_clear=only_clear)


def _parse_values(text: str, at: int) -> tuple[list[Any], int]:
    """Read JSON values that follow each other, those of a list one by one, and where they end.

    Raises:
        ValueError: one that begins is not valid.
    """
    values: list[Any] = []
    at = _match_end(_BETWEEN, text, at)
    while at < len(text) and text[at] != "<":
        value, at = _DECODER.raw_decode(text, at)
        values += value if isinstance(value, list) else [value]
        at = _match_end(_BETWEEN, text, at)
    return values, at


def _parse_call(value: Any, *, only_clear: bool) -> ToolCall:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return ToolCall("", {}, 'The call is not an object with a "name" and "arguments".')
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return ToolCall(name, {}, f"The arguments of {name} are not valid JSON.")
    if arguments is None and not only_clear:
        arguments = {}
    if not isinstance(arguments, dict):
        return ToolCall(name, {}, f"The arguments of {name} are not an object.")
    key = value.get("id")
    return ToolCall(name, arguments, id=key if isinstance(key, str) else "")


def _match_end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
