"""How a model writes calls: one record, by which calls are written, read and constrained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple

from edgesdk.text.template_text import TemplateText, concat, from_template
from edgesdk.tools.argument_notations import ArgumentNotation, JsonObject
from edgesdk.tools.marks import first_mark, loose
from edgesdk.tools.schema_types import parameters_of
from edgesdk.tools.tool_call import ToolCall

Field = Literal["name", "arguments", "id", "index"]

_NAME = re.compile(r"\s*((?!(?:true|false|null)\b)[^\W\d][\w.-]*)")
_ID = re.compile(r"\s*([\w.:-]+)")
_INDEX = re.compile(r"\s*(\d+)")
_DECODER = json.JSONDecoder()


class FoundCalls(NamedTuple):
    """The calls of an answer, and where they stand in it.

    Attributes:
        end: after the last mark of the calls.
        is_whole: whether nothing of them is missing at the end of the text.
    """

    calls: tuple[ToolCall, ...]
    start: int
    end: int
    is_whole: bool


@dataclass(frozen=True)
class CallSyntax:
    """How a family writes calls: the marks around names and arguments.

    Attributes:
        texts: what stands before, between and after the fields of one call; one more than those.
        fields: what is written of each call, in this order.
        opening: before the first call of an answer.
        between: what stands between two calls; None where an answer has only one.
        closing: after the last call.
        notation: how the arguments are written.
        first_index: the number of the first call, where calls are numbered.
    """

    texts: tuple[str, ...]
    fields: tuple[Field, ...] = ("name", "arguments")
    opening: str = ""
    between: str | None = None
    closing: str = ""
    notation: ArgumentNotation = field(default_factory=JsonObject)
    first_index: int = 0

    @cached_property
    def mark(self) -> str:
        """What tells calls from other text; "" where that is only the JSON of the call."""
        start = self.opening.strip() or self.texts[0].strip()
        is_value = start.startswith(("{", '["', "[{")) or start == "["
        return "" if is_value else first_mark(start)

    @cached_property
    def last_mark(self) -> str:
        """What ends the calls of an answer; "" where nothing does."""
        ending = (self.texts[-1] + self.closing).rstrip()
        found = re.search(r"(?:<[^<>\n]+>|\[/[A-Z_]+\])[^<>\[\]]*\Z", ending)
        return found[0] if found else ""

    @cached_property
    def marks(self) -> str:
        """All that is written around names, keys and values."""
        notation = self.notation.write({"": ""})
        return "\0".join((self.opening, *self.texts, self.between or "", self.closing, notation))

    @property
    def is_header(self) -> bool:
        """Whether a call begins in the header of a message, as gpt-oss names its recipient."""
        return self.mark.startswith("to=")

    @property
    def is_json(self) -> bool:
        """Whether a call is one JSON object, with its name in it."""
        before = self.texts[self.fields.index("name")]
        return before.endswith('"') and isinstance(self.notation, JsonObject)

    def write(self, calls: Sequence[ToolCall]) -> TemplateText:
        """An answer that makes `calls`; what is around names and arguments is no value."""
        between = from_template(self.between if self.between is not None else "; ")
        written = [self._written(call, place) for place, call in enumerate(calls)]
        listed = between.join(written)
        return concat((from_template(self.opening), listed, from_template(self.closing)))

    def written_name(self, name: str) -> str:
        """A name as it is written: inside of a JSON text, or by itself."""
        before = self.texts[self.fields.index("name")]
        return json.dumps(name, ensure_ascii=False)[1:-1] if before.endswith('"') else name

    def read(self, text: str, specs: Sequence[Mapping[str, Any]] = ()) -> FoundCalls | None:
        """Find the calls of an answer; None where it makes none in this syntax.

        A call that is cut off or malformed has a `problem`, and is the last one.

        Args:
            specs: tools in the form of OpenAI's API. Where values have no quotes, the schemas tell
                which of them are texts.
        """
        if self.mark not in text:
            return None
        starts = re.compile(loose(self.opening + self.texts[0])).finditer(text)
        start = next((found.start() for found in starts if self._may_start(text, found)), None)
        if start is None:
            return None
        opened = re.compile(loose(self.opening) + r"\s*").match(text, start)
        at = start if opened is None else opened.end()
        calls: list[ToolCall] = []
        while True:
            call, at = self._read_call(text, at, specs)
            calls.append(call)
            if call.problem is not None:
                return FoundCalls(tuple(calls), start, len(text), False)
            after = self._next_call(text, at)
            if after is None:
                break
            at = after
        closed = re.compile(r"\s*" + loose(self.closing)).match(text, at)
        end = at if closed is None else closed.end()
        return FoundCalls(tuple(calls), start, end, closed is not None)

    def _may_start(self, text: str, found: re.Match[str]) -> bool:
        """Whether calls begin here: those without a mark are all of an answer."""
        return bool(self.mark) or not text[: found.start()].strip()

    def _next_call(self, text: str, at: int) -> int | None:
        """Where another call begins after one that ends at `at`; None where none does."""
        between = r"[\s;,]*" if self.between is None else rf"\s*{loose(self.between)}\s*"
        begins = re.compile(f"({between}){loose(self.texts[0])}").match(text, at)
        if begins is None or (begins.end() == at and not text[at:].strip()):
            return None
        return begins.end(1)

    def _read_call(
        self, text: str, at: int, specs: Sequence[Mapping[str, Any]]
    ) -> tuple[ToolCall, int]:
        name, key = "", ""
        arguments: dict[str, Any] = {}
        try:
            at = _skip(self.texts[0], text, at)
            for place, kind in enumerate(self.fields):
                after = self.texts[place + 1]
                if kind == "name":
                    name, at = _read_name(text, at, quoted=self.texts[place].endswith('"'))
                elif kind == "arguments":
                    ending = after + self.closing
                    schema = parameters_of(name, specs)
                    arguments, at = self.notation.read(text, at, schema, ending)
                else:
                    key, at = _matched(_INDEX if kind == "index" else _ID, text, at)
                needed, optional = after, ""
                if place == len(self.fields) - 1 and self.notation.is_closed:
                    # A mark that only ends the call may be missing, as tokens that end answers.
                    needed, optional = _before_marks(after)
                at = _skip(needed, text, at)
                at = _skip(optional, text, at, needed=False)
        except ValueError as error:
            return ToolCall(name, {}, f"The call of {name or 'a tool'} is not valid: {error}."), at
        return ToolCall(name, arguments, id=key if "id" in self.fields else ""), at

    def _written(self, call: ToolCall, place: int) -> TemplateText:
        written = {
            "name": self.written_name(call.name),
            "arguments": self.notation.write(call.arguments),
            "id": call.id,
            "index": from_template(str(self.first_index + place)),
        }
        fields = [written[field] for field in self.fields]
        texts = list(map(from_template, self.texts))
        return concat(chain(*zip(texts, fields, strict=False), texts[-1:]))


def _skip(mark: str, text: str, at: int, *, needed: bool = True) -> int:
    """Where a text of marks ends that stands at `at`; what is not needed may be missing."""
    if not mark.strip():
        return at
    found = re.compile(r"\s*" + loose(mark)).match(text, at)
    if found is not None:
        return found.end()
    if needed:
        raise ValueError(_absent(first_mark(mark), text, at))
    return at


def _before_marks(text: str) -> tuple[str, str]:
    """A text up to its first mark, and the rest of it."""
    before = re.split(r"(?=<)|(?=\[[A-Z])", text, maxsplit=1)[0]
    return before, text[len(before) :]


def _absent(what: str, text: str, at: int) -> str:
    return f"no {what!r} at character {at}" if text[at:].strip() else "it is cut off"


def _read_name(text: str, at: int, *, quoted: bool) -> tuple[str, int]:
    if not quoted:
        return _matched(_NAME, text, at)
    name, end = _DECODER.raw_decode(text, at - 1)
    return name, end - 1


def _matched(pattern: re.Pattern[str], text: str, at: int) -> tuple[str, int]:
    found = pattern.match(text, at)
    if found is None:
        raise ValueError(_absent("name", text, at))
    return found[1], found.end()
