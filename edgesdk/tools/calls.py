"""Find tool calls in a model's answer.

Families write them in a few ways, most of them JSON with a name and arguments:

- Hermes, Qwen, SmolLM: `<tool_call>{...}</tool_call>`, one tag for each call or a list in one;
- Llama 3: the whole answer is `{"name": ..., "parameters": {...}}`, several after each other;
- Granite, Phi-4, Hunyuan: the same within `<|tool_call|>` or `<tool_calls>`;
- Mistral: `[TOOL_CALLS][{...}, {...}]`, of which often only the list is text, each with an id;
- others with the name outside of the JSON: see `edgesdk.tools.spelled_calls`;
- models that learned none of them well: the same in a code fence, or in braces twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from edgesdk.tools.spelled_calls import parse_functions, parse_keyed, parse_named, parse_python
from edgesdk.tools.tool_call import ToolCall

__all__ = ["CALL_START", "ToolCall", "ToolCalls", "parse_calls", "text_before_calls"]

_NAMED_START = re.compile(r"\s*[A-Za-z_][\w.-]*\{")
# Where tagged calls begin. What ends them is the tag with a slash.
CALL_START = re.compile(r"<(\|?)(tool_calls?|function_?calls?)\|?>|(?=<function=)")
# Marks before calls that some tokenizers spell out and others leave without text.
_MARKS = ("<|python_tag|>", "[TOOL_CALLS]")
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)```\s*\Z", re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")
_DECODER = json.JSONDecoder()


class ToolCalls(tuple[ToolCall, ...]):
    """The calls of one answer, in order: what an answer with tools is parsed to."""


def parse_calls(text: str, specs: Sequence[Mapping[str, Any]] = ()) -> tuple[ToolCall, ...]:
    """Find the calls in an answer, in order; none where it is an answer to the user.

    Args:
        specs: tools in the form of OpenAI's API. Some families write arguments without quotes;
            the schemas tell which of them are texts.
    """
    # Texts of a call may have a tag in them, so a tag counts only where the whole is no call.
    return (
        _parse_untagged(text)
        or parse_named(text)
        or tuple(_parse_tagged(text, specs))
        or parse_python(text)
    )


def text_before_calls(text: str) -> str:
    """The words before the calls of an answer; "" where no mark separates the two."""
    if _parse_untagged(text):
        return ""
    places = [place for mark in _MARKS if (place := text.find(mark)) >= 0]
    tagged = CALL_START.search(text)
    places += [tagged.start()] if tagged else []
    return text[: min(places)].strip() if places else ""


def has_begun_calls(text: str) -> bool:
    """Whether an answer so far may hold calls, whole or not."""
    begins = text.lstrip().startswith(("{", "[", "```")) or _NAMED_START.match(text) is not None
    tagged = CALL_START.search(text) is not None
    return begins or tagged or any(mark in text for mark in _MARKS)


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


def _parse_tagged(text: str, specs: Sequence[Mapping[str, Any]]) -> Iterator[ToolCall]:
    at = 0
    while (found := CALL_START.search(text, at)) is not None:
        start = end = found.end()
        functions, after = parse_functions(text, start, specs)
        if not functions and found[2] is not None:
            functions, after = parse_keyed(text, start, specs)
        if functions:
            yield from functions
            end = after
        else:
            # The end is looked for behind the JSON, in whose texts it may stand too.
            with suppress(ValueError, RecursionError):
                end = _parse_values(text, start)[1]
        if found[2] is None:
            # A function without a tag around it.
            at = max(after, found.end() + 1)
            continue
        close = text.find(f"<{found[1]}/{found[2]}", end)
        if not functions:
            yield from _parse_block(text[start : close if close >= 0 else len(text)])
        if close < 0:
            return
        at = close + 1


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
