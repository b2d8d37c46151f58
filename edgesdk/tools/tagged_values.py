"""Arguments of calls that are written one by one, between marks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgesdk.text.template_text import concat, from_template
from edgesdk.tools.argument_notations import LITERALS, SPACING, Arguments
from edgesdk.tools.call_rules import CallRules
from edgesdk.tools.marks import first_mark, loose
from edgesdk.tools.schema_types import json_type, resolved, types_of


@dataclass(frozen=True)
class TaggedValues:
    """Each argument between marks; texts have no quotes, and anything else is JSON.

    Attributes:
        before: the text before each key.
        middle: between a key and its value.
        after: after each value; `between` comes before the next key.
        typed: other texts than `middle`, by the JSON type of the value, where the marks name it.
    """

    before: str
    middle: str
    after: str
    between: str = ""
    typed: tuple[tuple[str, str], ...] = ()
    is_closed = False

    def write(self, arguments: Mapping[str, Any]) -> str:
        items = [
            concat(
                (
                    from_template(self.before),
                    key,
                    from_template(self._middle(json_type(value))),
                    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
                    from_template(self.after),
                )
            )
            for key, value in arguments.items()
        ]
        return from_template(self.between).join(items)

    def read(
        self, text: str, at: int, schema: Mapping[str, Any], ending: str
    ) -> tuple[Arguments, int]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        starts = re.compile(rf"\s*{loose(self.between)}\s*{loose(self.before)}")
        # What looks like the end of a value ends it only where the call goes on after it.
        ends = re.compile(
            rf"{loose(self.after)}(?=\s*(?:{starts.pattern}|{loose(first_mark(ending))}|\Z))"
        )
        arguments: Arguments = {}
        while (start := starts.match(text, at)) is not None:
            middle, kind = self._find_middle(text, start.end())
            end = None if middle is None else ends.search(text, middle.end())
            if middle is None or end is None:
                raise ValueError("an argument does not end")
            key = text[start.end() : middle.start()].strip()
            value = text[middle.end() : end.start()]
            if kind is None:
                kinds = types_of(properties[key], schema) if key in properties else frozenset()
            else:
                kinds = frozenset({kind})
            arguments[key] = _untagged(self._without_space(value), kinds)
            at = end.end()
        return arguments, at

    def rule(self, schema: Mapping[str, Any], rules: CallRules) -> str:
        properties, parts = schema.get("properties") or {}, []
        required = schema.get("required", ())
        if not properties and schema.get("additionalProperties", True) is not False:
            key = f'{rules.text(self.before)} /[^<>\\s"=]+/'
            value = f"{rules.text(self._middle('string'))} {rules.text_until(self.after)}"
            again = f"{rules.text(self.between)} {key} {value}"
            return f"({key} {value} ({again})*)?"
        if self.between:
            return rules.listed(
                schema,
                lambda key, given: (
                    f"{rules.text(self.before + key)} {self._value_rule(given, schema, rules)}"
                ),
                rules.text(self.between),
            )
        for key, given in properties.items():
            part = f"{rules.text(self.before + key)} {self._value_rule(given, schema, rules)}"
            parts.append(part if key in required else f"({part})?")
        return " ".join(parts)

    def _value_rule(self, given: Any, schema: Mapping[str, Any], rules: CallRules) -> str:
        """What follows a key: the marks, and the value between them."""
        value = resolved(given, schema)
        types = types_of(value, schema)
        choices = value.get("enum", [value["const"]] if "const" in value else [])
        if choices:
            ways = [
                self._middle(json_type(choice))
                + (choice if isinstance(choice, str) else json.dumps(choice))
                + self.after
                for choice in choices
            ]
            return f"({' | '.join(map(rules.text, ways))})"
        if not value or "string" in types:
            return f"{rules.text(self._middle('string'))} {rules.text_until(self.after)}"
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        written = rules.json({**definitions, **value}, SPACING)
        middle = self._middle(min(types, default="object"))
        return f"{rules.text(middle)} {written} {rules.text(self.after)}"

    def _middle(self, kind: str) -> str:
        return dict(self.typed).get(kind, self.middle)

    def _find_middle(self, text: str, at: int) -> tuple[re.Match[str] | None, str | None]:
        """Where a value begins, and its type where the marks name that."""
        middles = dict.fromkeys([self.middle, *(middle for _, middle in self.typed)])
        found = re.compile("|".join(f"({loose(middle)})" for middle in middles)).search(text, at)
        if found is None or not self.typed:
            return found, None
        written = list(middles)[(found.lastindex or 1) - 1]
        is_text = written == self._middle("string")
        return found, "string" if is_text else "value"

    def _without_space(self, value: str) -> str:
        """A value without the space that belongs to the marks around it."""
        after_mark = self.middle[len(self.middle.rstrip()) :]
        before_mark = self.after[: len(self.after) - len(self.after.lstrip())]
        return value.removeprefix(after_mark).removesuffix(before_mark)


def _untagged(text: str, types: frozenset[str]) -> Any:
    """The value that a text without quotes stands for; a text where the schema wants one."""
    if types and types <= {"string", "null"}:
        return None if text in ("null", "None") and "null" in types else text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return LITERALS.get(text.strip(), text)
