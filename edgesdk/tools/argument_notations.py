"""How call syntaxes write the arguments of a call: one class for each notation.

Each one writes arguments, reads them back, and says in a grammar what may be written for a schema.
Others are in `edgesdk.tools.tagged_values` and `edgesdk.tools.bare_object`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edgesdk.tools.call_rules import CallRules
from edgesdk.tools.schema_types import types_of

Arguments = dict[str, Any]
_DECODER = json.JSONDecoder()
# JSON's literals and Python's, which templates print where they do not convert a value.
LITERALS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
# As Python writes JSON, on which most models were trained. Small ones that may write any space
# tend to never stop doing so.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# What Python has for values that have names in JSON.
_CONSTANTS = {"boolean": ("True", "False"), "null": ("None",)}
_SPACE = re.compile(r"\s*")
_MAX_PYTHON = 20_000


class ArgumentNotation(Protocol):
    """How the arguments of a call are written."""

    @property
    def is_closed(self) -> bool:
        """Whether the arguments themselves show where they end."""

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Write arguments; what is no value is the template's text."""

    def read(
        self, text: str, at: int, schema: Mapping[str, Any], ending: str
    ) -> tuple[Arguments, int]:
        """Read arguments that begin at `at`, and where they end.

        Args:
            schema: of the tool's arguments; tells texts from other values where nothing else does.
            ending: what follows the arguments.

        Raises:
            ValueError: they are malformed, or cut off.
        """

    def rule(self, schema: Mapping[str, Any], rules: CallRules) -> str:
        """What a grammar allows of them: the right side of a rule."""


@dataclass(frozen=True)
class JsonObject:
    """A JSON object.

    Attributes:
        separators: between items, and between a key and its value.
        indent: spaces of each level, where each item has a line of its own; `margin` are those
            of the line that ends the object.
    """

    separators: tuple[str, str] = (", ", ": ")
    indent: int | None = None
    margin: int = 0
    is_closed = True

    def write(self, arguments: Mapping[str, Any]) -> str:
        separators = self.separators if self.indent is None else (",", self.separators[1])
        written = json.dumps(
            arguments, ensure_ascii=False, separators=separators, indent=self.indent
        )
        # A line break within a text is escaped.
        return written.replace("\n", "\n" + " " * self.margin)

    def read(
        self, text: str, at: int, schema: Mapping[str, Any], ending: str
    ) -> tuple[Arguments, int]:
        value, end = decoded(text, skip_space(text, at))
        if isinstance(value, str):
            # OpenAI's own form: the object as a text.
            value, _ = decoded(value, 0)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value, end

    def rule(self, schema: Mapping[str, Any], rules: CallRules) -> str:
        item, key = self.separators
        if self.indent is not None:
            return rules.json(schema, {"whitespace_pattern": r"[ \n]{0,40}"})
        return rules.json(schema, {**SPACING, "item_separator": item, "key_separator": key})


@dataclass(frozen=True)
class PythonKeywords:
    """Keyword arguments of a call in Python, whose values are literals.

    Attributes:
        quote: around texts; `"` writes them as JSON does.
    """

    quote: str = '"'
    is_closed = True

    def write(self, arguments: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={self._literal(value)}" for key, value in arguments.items())

    def read(
        self, text: str, at: int, schema: Mapping[str, Any], ending: str
    ) -> tuple[Arguments, int]:
        if len(text) - at > _MAX_PYTHON:
            raise ValueError("the arguments are too long")
        for end in _closing_brackets(text, at):
            try:
                tree = ast.parse(f"f({text[at:end]})", mode="eval").body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            return python_arguments(tree), end
        raise ValueError("they are no arguments of Python")

    def rule(self, schema: Mapping[str, Any], rules: CallRules) -> str:
        def item(key: str, given: Any) -> str:
            definitions = {
                name: schema[name] for name in ("$defs", "definitions") if name in schema
            }
            value = given if isinstance(given, dict) else {}
            types = types_of(value, schema)
            if types and types <= _CONSTANTS.keys():
                words = [word for kind in sorted(types) for word in _CONSTANTS[kind]]
                return f"{rules.text(f'{key}=')} ({' | '.join(map(rules.text, words))})"
            return f"{rules.text(f'{key}=')} {rules.json({**definitions, **value}, SPACING)}"

        return rules.listed(schema, item, rules.text(", "))

    def _literal(self, value: Any) -> str:
        if self.quote == '"' and isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        return repr(value)


def python_arguments(tree: ast.expr) -> Arguments:
    """The arguments of a call in Python, all of them literals with names.

    Raises:
        ValueError: they are something else, or no values of JSON.
    """
    if not isinstance(tree, ast.Call) or tree.args:
        raise ValueError("it is no call with names for its arguments")
    arguments: Arguments = {}
    for keyword in tree.keywords:
        if keyword.arg is None:
            raise ValueError("an argument has no name")
        arguments[keyword.arg] = _whole(ast.literal_eval(_JsonNames().visit(keyword.value)))
    # What JSON cannot say (bytes, sets) is no argument.
    json.dumps(arguments, allow_nan=False, default=_refuse)
    return arguments


class _JsonNames(ast.NodeTransformer):
    """JSON's `true`, `false` and `null` as the literals of Python."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in LITERALS:
            raise ValueError(f"{node.id} is no literal")
        return ast.Constant(LITERALS[node.id])


def _whole(value: Any) -> Any:
    """A value whose texts have whole characters where JSON's escapes gave two halves."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return value


def _refuse(value: Any) -> Any:
    raise ValueError(f"{value!r} is no JSON value")


def _closing_brackets(text: str, at: int) -> Iterator[int]:
    """Where brackets close outside of texts, as far as is told without parsing."""
    depth, quote = 0, ""
    while at < len(text):
        letter = text[at]
        if quote:
            at += letter == "\\"
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            if not depth:
                yield at
                return
            depth -= 1
        at += 1


def decoded(text: str, at: int) -> tuple[Any, int]:
    """A JSON value that begins at `at`, and where it ends; raises ValueError."""
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
