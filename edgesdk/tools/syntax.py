"""How one family writes tool calls: the text around their names and arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from edgesdk.tools.calls import ToolCall, calls_in

Field = Literal["name", "arguments", "id"]

# The mark that calls begin with, as <tool_call> or [TOOL_CALLS], and what opens a list of them.
_MARKED = re.compile(r"(?:<[^<>\s]+>|\[[A-Z_]+\])?[\s\[]*\Z")
_SEPARATORS = ((", ", ": "), (",", ":"))


@dataclass(frozen=True)
class CallSyntax:
    """What stands around calls, each of them a JSON object.

    Attributes:
        opening: before the first call; may start with a mark, as "<tool_call>".
        fields: what is written of each call, in this order.
        texts: what stands before, between and after the fields; one more than those.
        between: what stands between two calls; None where an answer has only one.
        closing: after the last call.
        separators: between the items of the arguments, and after their keys.
    """

    opening: str
    fields: tuple[Field, ...]
    texts: tuple[str, ...]
    between: str | None
    closing: str
    separators: tuple[str, str] = _SEPARATORS[0]

    @property
    def mark(self) -> str:
        """The part of `opening` that tells calls from other text; may be empty."""
        return re.split(r"(?<=\S)[\s\[]+\Z", self.opening)[0].strip()

    def write(self, calls: Sequence[ToolCall]) -> str:
        """An answer that makes `calls`."""
        return f"{self.opening}{(self.between or '; ').join(map(self._one, calls))}{self.closing}"

    def _one(self, call: ToolCall) -> str:
        written = {
            "name": escaped(call.name),
            "arguments": json.dumps(call.arguments, ensure_ascii=False, separators=self.separators),
            "id": call.id,
        }
        fields = [written[field] for field in self.fields]
        return "".join(chain(*zip(self.texts, fields, strict=False), self.texts[-1:]))


_OBJECT = ('{"name": "', '", "arguments": ', "}")
# Hermes function calling (Nous Research), which Qwen took over.
HERMES = CallSyntax(
    "<tool_call>\n",
    ("name", "arguments"),
    _OBJECT,
    "\n</tool_call>\n<tool_call>\n",
    "\n</tool_call>",
)
# SmolLM2 was trained on one list of all calls.
SMOLLM = CallSyntax("<tool_call>[", ("name", "arguments"), _OBJECT, ", ", "]</tool_call>")


def escaped(name: str) -> str:
    """A name as it stands between the quotes of a JSON text."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def learned_syntax(
    write: Callable[[Sequence[ToolCall]], str | None], probes: Sequence[ToolCall]
) -> CallSyntax | None:
    """The syntax of a writer of calls, found out by letting it write `probes`.

    Args:
        write: the answer that makes calls; None where it cannot be written.
        probes: two calls with unlike names, arguments and ids, none of which JSON escapes.

    Returns:
        None where the calls are not written as JSON objects that `calls_in` reads.
    """
    one, two = write(probes[:1]), write(probes)
    if one is None:
        return None
    separators = next((s for s in _SEPARATORS if _dumped(probes[0], s) in one), None)
    if separators is None:
        return None
    places = _places(one, probes[0], separators)
    if "name" not in places:
        return None
    order = sorted(places, key=lambda field: places[field][0])
    edges = [0, *chain(*(places[field] for field in order)), len(one)]
    first, *inner, last = (one[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
    start, end = first.find("{"), last.rfind("}") + 1
    if start < 0 or not end:
        return None
    marked = _MARKED.search(first[:start])
    syntax = CallSyntax(
        opening=marked[0].lstrip() if marked else "",
        fields=tuple(order),
        texts=(first[start:], *inner, last[:end]),
        between=None,
        closing=last[end:].rstrip(),
        separators=separators,
    )
    syntax = replace(syntax, between=_between(syntax, two, probes))
    # Other shapes of JSON than those that are read here would be held to, and then not understood.
    read = [(call.name, call.arguments) for call in calls_in(syntax.write(probes[:1]))]
    return syntax if read == [(probes[0].name, probes[0].arguments)] else None


def _places(text: str, call: ToolCall, separators: tuple[str, str]) -> dict[Field, tuple[int, int]]:
    wanted: dict[Field, str] = {
        "name": call.name,
        "arguments": _dumped(call, separators),
        "id": call.id,
    }
    found = {field: text.find(value) for field, value in wanted.items()}
    return {
        field: (place, place + len(wanted[field])) for field, place in found.items() if place >= 0
    }


def _between(syntax: CallSyntax, two: str | None, probes: Sequence[ToolCall]) -> str | None:
    if two is None:
        return None
    first, second = (
        CallSyntax("", syntax.fields, syntax.texts, None, "", syntax.separators).write([call])
        for call in probes
    )
    start, end = two.find(first), two.find(second)
    return two[start + len(first) : end] if 0 <= start < end else None


def _dumped(call: ToolCall, separators: tuple[str, str]) -> str:
    return json.dumps(call.arguments, ensure_ascii=False, separators=separators)
