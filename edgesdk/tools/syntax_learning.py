"""Learn how a chat template writes calls, by letting it write some."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, takewhile
from typing import NamedTuple

from edgesdk.tools.argument_notations import ArgumentNotation, JsonObject, PythonKeywords
from edgesdk.tools.bare_object import BareObject
from edgesdk.tools.call_syntax import CallSyntax, Field
from edgesdk.tools.tagged_values import TaggedValues
from edgesdk.tools.tool_call import ToolCall

# Those that one look at a call tells; other notations are found out from the marks in them.
NOTATIONS: tuple[ArgumentNotation, ...] = (
    JsonObject(),
    JsonObject((",", ":")),
    PythonKeywords("'"),
    PythonKeywords('"'),
    BareObject(),
)
PROBES = (
    # Mistral's templates insist on ids of nine characters.
    ToolCall("probe_one", {"probe_key": "probe_value", "probe_other": 1}, id="prob00001"),
    ToolCall("probe_two", {"probe_key": "probe_other_value", "probe_other": 2}, id="prob00002"),
)
# Where marks name the type of a value: a call with a value of each.
_TYPED: dict[str, object] = {
    "string": "probe_text",
    "integer": 7,
    "number": 2.5,
    "boolean": True,
    "null": None,
    "array": [7],
    "object": {"probe_inner": 7},
}
_TYPED_CALL = ToolCall("probe_one", {f"probe_{kind}": value for kind, value in _TYPED.items()})

# Writes an answer that makes these calls, from where it begins to where it ends; None where the
# template cannot.
Writer = Callable[[Sequence[ToolCall]], "str | None"]


class _Span(NamedTuple):
    start: int
    end: int
    field: Field


def learn_syntax(write: Writer) -> CallSyntax | None:
    """Find out the syntax of a writer of calls; None where it is none that is read here."""
    one = write(PROBES[:1])
    if one is None:
        return None
    notation = _find_notation(one, PROBES[0]) or _learn_tags(one, write)
    if notation is None:
        return None
    two = write(PROBES)
    syntax = _learn_marks(one, two, notation)
    if syntax is None or not (syntax.mark or syntax.is_json):
        return None
    # Other shapes than those that are read here would be held to, and then not understood.
    calls = PROBES[: 1 if syntax.between is None else 2]
    found = syntax.read(syntax.write(calls))
    read = [] if found is None else [(call.name, call.arguments) for call in found.calls]
    return syntax if read == [(call.name, call.arguments) for call in calls] else None


def _find_notation(text: str, call: ToolCall) -> ArgumentNotation | None:
    known = next((way for way in NOTATIONS if way.write(call.arguments) in text), None)
    return known or _find_lines(text, call)


def _find_lines(text: str, call: ToolCall) -> JsonObject | None:
    """The notation of a JSON object with a line for each item."""
    for found in re.finditer(r"\{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except ValueError:
            continue
        lines = text[found.start() : end].split("\n")
        if value == call.arguments and len(lines) > 2:
            margin = len(lines[-1]) - 1
            return JsonObject(indent=len(lines[1]) - len(lines[1].lstrip()) - margin, margin=margin)
    return None


def _learn_tags(one: str, write: Writer) -> TaggedValues | None:
    """The notation of arguments that are written one by one, between marks."""
    call = PROBES[0]
    texts = _texts_between(one, [call.name, *_keys_and_values(call)])
    if texts is None:
        return None
    _, to_key, middle, to_next, other_middle, last = texts
    after = shared_start(to_next, last)
    before = shared_end(to_next[len(after) :], to_key)
    between = to_next[len(after) : len(to_next) - len(before)]
    if not before or not after.strip() or call.arguments.keys() & set(_words(after)):
        return None
    tags = TaggedValues(before, middle, after, between)
    return tags if middle == other_middle else _with_types(tags, write)


def _with_types(tags: TaggedValues, write: Writer) -> TaggedValues | None:
    typed = write([_TYPED_CALL])
    if typed is None:
        return None
    middles = []
    for kind, value in _TYPED.items():
        key = f"{tags.before}probe_{kind}"
        written = value if isinstance(value, str) else json.dumps(value)
        start = typed.find(key) + len(key)
        end = typed.find(written + tags.after, start)
        if start < len(key) or end < 0:
            return None
        middles.append((kind, typed[start:end]))
    return replace(tags, typed=tuple(middles))


def _learn_marks(one: str, two: str | None, notation: ArgumentNotation) -> CallSyntax | None:
    """The texts around names and arguments, and those around calls."""
    first = _spans(one, PROBES[0], notation, 0)
    if first is None:
        return None
    texts = _texts_around(one, first)
    fields = tuple(span.field for span in first)
    # Space before a mark belongs to the words that were left out.
    head = texts[0].lstrip() if texts[0].lstrip().startswith(("<", "[", "{")) else texts[0]
    alone = CallSyntax((head, *texts[1:-1], texts[-1].rstrip()), fields, notation=notation)
    spans = None if two is None else _spans(two, PROBES[0], notation, 0)
    others = None if spans is None else _spans(two or "", PROBES[1], notation, spans[-1].end)
    if two is None or spans is None or others is None:
        return _numbered(alone, alone.texts)
    head, tail = alone.texts[0], alone.texts[-1]
    middle, second_end = _with_same_number(two[spans[-1].end : others[0].start], head)
    call_end = shared_start(middle, tail)
    call_start = shared_end(middle[len(call_end) :], head)
    inner = _texts_around(two, others)[1:-1]
    syntax = replace(
        alone,
        opening=head[: len(head) - len(call_start)],
        texts=(call_start, *alone.texts[1:-1], call_end),
        between=middle[len(call_end) : len(middle) - len(call_start)],
        closing=tail[len(call_end) :],
    )
    second = call_start[: len(call_start) - len(second_end)] + second_end
    return _numbered(syntax, (second, *inner, call_end))


def _with_same_number(middle: str, head: str) -> tuple[str, str]:
    """What stands between two calls, with the first one's number for the second one's.

    Returns:
        It, and the end of it from the second number on; "" where calls have none there.
    """
    for found in re.finditer(r"\d+", head):
        rest = head[found.end() :]
        counted = f"{int(found[0]) + 1}{rest}"
        if middle.endswith(counted):
            return f"{middle[: len(middle) - len(counted)]}{found[0]}{rest}", counted
    return middle, ""


def _numbered(syntax: CallSyntax, others: Sequence[str]) -> CallSyntax | None:
    """The syntax with the number of each call as a field, where the second call has another."""
    for place, (text, other) in enumerate(zip(syntax.texts, others, strict=True)):
        numbers = [
            (found, number)
            for found, number in zip(
                re.finditer(r"\d+", text), re.finditer(r"\d+", other), strict=False
            )
            if found.start() == number.start() and int(number[0]) == int(found[0]) + 1
        ]
        if text == other:
            continue
        if len(numbers) != 1:
            return None
        found, _ = numbers[0]
        texts = list(syntax.texts)
        texts[place : place + 1] = [text[: found.start()], text[found.end() :]]
        fields = list(syntax.fields)
        fields.insert(place, "index")
        return replace(syntax, texts=tuple(texts), fields=tuple(fields), first_index=int(found[0]))
    return syntax


def _spans(text: str, call: ToolCall, notation: ArgumentNotation, at: int) -> list[_Span] | None:
    """Where the fields of a call stand, in their order."""
    written: list[tuple[Field, str]] = [
        ("arguments", notation.write(call.arguments)),
        ("name", call.name),
        ("id", call.id),
    ]
    spans: list[_Span] = []
    for field, value in written:
        places = [found.start() for found in re.finditer(re.escape(value), text[at:])]
        if field == "name" and spans:
            # Some write the name in the marks of the call, and once more within.
            places = places[: 1 if len(places) < 2 or places[1] > spans[0].start - at else 2]
        else:
            places = places[:1]
        if not places and field != "id":
            return None
        spans += [_Span(at + place, at + place + len(value), field) for place in places]
    return sorted(spans)


def _texts_around(text: str, spans: Sequence[_Span]) -> tuple[str, ...]:
    edges = [0, *chain(*((span.start, span.end) for span in spans)), len(text)]
    return tuple(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))


def _texts_between(text: str, parts: Sequence[str]) -> list[str] | None:
    """The texts before, between and after parts that follow each other."""
    texts, at = [], 0
    for part in parts:
        place = text.find(part, at)
        if place < 0:
            return None
        texts.append(text[at:place])
        at = place + len(part)
    return [*texts, text[at:]]


def _keys_and_values(call: ToolCall) -> list[str]:
    return [str(part) for item in call.arguments.items() for part in item]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def shared_start(first: str, second: str) -> str:
    """What two texts begin with, up to the end of a mark."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    shared = first[: len(list(pairs))]
    if len(shared) in (len(first), len(second)):
        return shared
    # The mark that was begun is another one in each.
    opened = max(shared.rfind("<"), shared.rfind("["))
    closed = max(shared.rfind(">"), shared.rfind("]"))
    return shared[:opened] if opened > closed else shared


def shared_end(first: str, second: str) -> str:
    """What two texts end with, from the beginning of a mark."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first[::-1], second[::-1], strict=False))
    length = len(list(pairs))
    shared = first[len(first) - length :]
    if length in (len(first), len(second)):
        return shared
    closed, opened = shared.find(">"), shared.find("<")
    cut = closed >= 0 and (opened < 0 or closed < opened)
    return shared[closed + 1 :].lstrip() if cut else shared.lstrip()
