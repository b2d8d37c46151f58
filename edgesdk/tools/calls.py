"""Tool calls in a model's answer.

Families write them in a few ways, all of them JSON with a name and arguments:

- Hermes, Qwen, SmolLM: `<tool_call>{...}</tool_call>`, one tag for each call or a list in one;
- Llama 3: the whole answer is `{"name": ..., "parameters": {...}}`, several after each other;
- models that learned neither well: the same in a code fence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)```\s*\Z", re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class ToolCall:
    """A call that a model asks for.

    Attributes:
        arguments: by name; not yet checked against the tool.
        problem: why it cannot be run as it was written; None if it can.
    """

    name: str
    arguments: dict[str, Any]
    problem: str | None = None


def calls_in(text: str) -> tuple[ToolCall, ...]:
    """The calls in an answer, in order; empty where it is an answer to the user."""
    tagged = _TAGGED.findall(text)
    if tagged:
        return tuple(call for block in tagged for call in _calls(block))
    body = text.strip().removeprefix("<|python_tag|>").strip()
    fenced = _FENCED.match(body)
    body = fenced[1].strip() if fenced else body
    if not body.startswith(("{", "[")):
        return ()
    # Without a tag, JSON may as well be what the user asked for: it has to look like a call.
    calls = tuple(_calls(body, only_clear=True))
    return () if any(call.problem for call in calls) else calls


def _calls(block: str, *, only_clear: bool = False) -> Iterator[ToolCall]:
    try:
        values = list(_values(block))
    except (ValueError, RecursionError) as error:
        yield ToolCall("", {}, f"The call is not valid JSON: {error}.")
        return
    if not values:
        yield ToolCall("", {}, "The call is empty.")
    for value in values:
        yield _call(value, only_clear=only_clear)


def _values(block: str) -> Iterator[Any]:
    """JSON values after each other, those of a list one by one."""
    at = _end(_BETWEEN, block, 0)
    while at < len(block):
        value, at = _DECODER.raw_decode(block, at)
        yield from value if isinstance(value, list) else [value]
        at = _end(_BETWEEN, block, at)


def _call(value: Any, *, only_clear: bool) -> ToolCall:
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
    return ToolCall(name, arguments)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
