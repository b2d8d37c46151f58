"""Find tool calls in a model's answer.

Models write them in the syntax of their template (`edgesdk.tools.call_syntax`). Small ones also
write them in others that they have seen, most of them JSON with a name and arguments, which are
read too:

- `<tool_call>{...}</tool_call>`, one tag for each call or a list in one, and tags like it;
- the whole answer is `{"name": ..., "parameters": {...}}`, several after each other;
- the same in a code fence, or in braces twice;
- the records of `edgesdk.tools.call_table`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.call_table import UNMARKED, WELL_KNOWN
from edgesdk.tools.tool_call import ToolCall

__all__ = ["CALL_START", "ToolCall", "ToolCalls", "has_begun_calls", "parse_calls"]

_NAMED_START = re.compile(r"\s*[A-Za-z_][\w.-]*(?:\[ARGS\])?\{")
# Where tagged calls begin. What ends them is the tag with a slash.
CALL_START = re.compile(r"<(\|?)(tool_calls?|function_?calls?)\|?>")
# Marks before JSON that some tokenizers spell out and others leave without text.
_MARKS = ("<|python_tag|>", "[TOOL_CALLS]")
_TAGS = (
    *("<tool_call>", "<tool_calls>", "<|tool_call|>", "<|tool_calls|>", "<function_call>"),
    *("<function_calls>", "<functioncall>"),
)
_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)```\s*\Z", re.DOTALL)
_BETWEEN = re.compile(r"[\s;,]*")
_DECODER = json.JSONDecoder()


class ToolCalls(tuple[ToolCall, ...]):
    """The calls of one answer, in order: what an answer with tools is parsed to.

    Attributes:
        words: what the answer says before them; "" where no mark separates the two.
    """

    words: str

    def __new__(cls, calls: Iterable[ToolCall] = (), words: str = "") -> ToolCalls:
        made = super().__new__(cls, calls)
        made.words = words
        return made


def parse_calls(
    text: str, specs: Sequence[Mapping[str, Any]] = (), syntax: CallSyntax | None = None
) -> ToolCalls:
    """Find the calls in an answer, in order; none where it is an answer to the user.

    Args:
        specs: tools in the form of OpenAI's API. Some families write arguments without quotes;
            the schemas tell which of them are texts.
        syntax: how the model writes calls; None where that is not known.
    """
    # Texts of a call may have a mark in them, so a mark counts only where the whole is no call.
    untagged = _parse_untagged(text)
    if untagged:
        return ToolCalls(untagged)
    faulty: list[ToolCalls] = []
    for read in (_read_own, _read_tagged, _read_known):
        for calls in read(text, specs, syntax):
            if not calls[-1].problem:
                return calls
            faulty.append(calls)
    # The reading that came furthest tells the model most.
    named = (calls for calls in faulty if calls[-1].name)
    return next(named, faulty[0]) if faulty else _read_unmarked(text, specs)


def has_begun_calls(text: str, syntax: CallSyntax | None = None) -> bool:
    """Whether an answer so far may hold calls, whole or not."""
    begins = text.lstrip().startswith(("{", "[", "```")) or _NAMED_START.match(text) is not None
    return begins or first_call_mark(text, syntax) is not None


def first_call_mark(text: str, syntax: CallSyntax | None = None) -> tuple[int, str] | None:
    """Where calls may begin in a text, and the mark that says so; None where nothing does."""
    tagged = CALL_START.search(text)
    found = [] if tagged is None else [(tagged.start(), tagged[0])]
    found += [(place, mark) for mark in call_marks(syntax) if (place := text.find(mark)) >= 0]
    # The longest of those that begin at one place.
    return min(found, key=lambda start: (start[0], -len(start[1])), default=None)


def call_marks(syntax: CallSyntax | None = None) -> tuple[str, ...]:
    """The marks that calls begin with: the model's own, and those of known syntaxes."""
    marks = [known.mark for known in _known_syntaxes(syntax)]
    return tuple(dict.fromkeys((*filter(None, marks), *_MARKS, *_TAGS)))


def end_of_calls(mark: str, syntax: CallSyntax | None = None) -> str:
    """What ends calls that begin with `mark`; "" where nothing does."""
    tagged = CALL_START.fullmatch(mark)
    if tagged is not None and tagged[2] is not None:
        return f"<{tagged[1]}/{tagged[2]}{tagged[1]}>"
    ends = (known.last_mark for known in _known_syntaxes(syntax) if known.mark == mark)
    return next(ends, "")


def is_call_mark(text: str, syntax: CallSyntax | None) -> bool:
    """Whether a text, as of a control token, is part of what calls are written with."""
    return any(text in known.marks for known in _known_syntaxes(syntax))


def _known_syntaxes(syntax: CallSyntax | None) -> tuple[CallSyntax, ...]:
    return WELL_KNOWN if syntax is None else (syntax, *WELL_KNOWN)


def _read_own(
    text: str, specs: Sequence[Mapping[str, Any]], syntax: CallSyntax | None
) -> Iterator[ToolCalls]:
    """The calls in the model's own syntax, or in JSON behind its own mark."""
    if syntax is None or not syntax.mark:
        return
    found = syntax.read(text, specs)
    if found is not None:
        yield ToolCalls(found.calls, text[: found.start].strip())
    start = text.find(syntax.mark)
    if start >= 0:
        body = text[start + len(syntax.mark) :]
        end = body.rfind(syntax.last_mark) if syntax.last_mark else -1
        calls = tuple(_parse_block(body if end < 0 else body[:end], only_clear=True))
        yield ToolCalls(calls, text[:start].strip())


def _read_tagged(
    text: str, specs: Sequence[Mapping[str, Any]], syntax: CallSyntax | None
) -> Iterator[ToolCalls]:
    found = CALL_START.search(text)
    calls = tuple(_parse_tagged(text))
    if found is not None and calls:
        yield ToolCalls(calls, text[: found.start()].strip())


def _read_known(
    text: str, specs: Sequence[Mapping[str, Any]], syntax: CallSyntax | None
) -> Iterator[ToolCalls]:
    for known in WELL_KNOWN:
        found = known.read(text, specs)
        if found is not None:
            yield ToolCalls(found.calls, text[: found.start].strip())


def _read_unmarked(text: str, specs: Sequence[Mapping[str, Any]]) -> ToolCalls:
    body = text.strip()
    if body.startswith("[") or _NAMED_START.match(body):
        for known in UNMARKED:
            found = known.read(body, specs)
            if found is not None and found.end == len(body) and not found.calls[-1].problem:
                return ToolCalls(found.calls)
    return ToolCalls()


def _parse_untagged(text: str) -> tuple[ToolCall, ...]:
    """The calls of an answer that is nothing but calls; none where it is anything else."""
    body = text.strip()
    for mark in _MARKS:
        body = body.removeprefix(mark).lstrip()
    fenced = _FENCED.match(body)
    body = fenced[1].strip() if fenced else body
    if not body.startswith(("{", "[")):
        return ()
    # Without a tag, JSON may as well be what the user asked for: it has to look like a call.
    calls = tuple(_parse_block(body, only_clear=True))
    return () if any(call.problem for call in calls) else calls


def _parse_tagged(text: str) -> Iterator[ToolCall]:
    """The calls in JSON between tags."""
    at = 0
    while (found := CALL_START.search(text, at)) is not None:
        start = end = found.end()
        # The end is looked for behind the JSON, in whose texts it may stand too.
        with suppress(ValueError, RecursionError):
            end = _parse_values(text, start)[1]
        close = text.find(f"<{found[1]}/{found[2]}", end)
        yield from _parse_block(text[start : close if close >= 0 else len(text)])
        if close < 0:
            return
        at = close + 1


def _parse_block(block: str, *, only_clear: bool = False) -> Iterator[ToolCall]:
    block = block.strip()
    if block.startswith("{{") and block.endswith("}}"):
        # So the template of Qwen2.5-Coder shows it, which was to be filled in by Python.
        block = block[1:-1]
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
