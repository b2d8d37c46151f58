"""Arguments of calls as Gemma 4 writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgesdk.text.template_text import concat, from_template
from edgesdk.tools.argument_notations import LITERALS, SPACING, Arguments, decoded, skip_space
from edgesdk.tools.call_rules import CallRules
from edgesdk.tools.schema_types import resolved, types_of

_MAX_DEPTH = 60
# As deep as a grammar follows a schema; what lies deeper may be any value.
_MAX_RULES = 8


@dataclass(frozen=True)
class BareObject:
    """An object whose keys have no quotes, and whose texts have marks for quotes (Gemma 4).

    Attributes:
        quote: before and after each text.
    """

    quote: str = '<|"|>'
    is_closed = True

    def write(self, arguments: Mapping[str, Any]) -> str:
        return self._written(arguments)

    def read(
        self, text: str, at: int, schema: Mapping[str, Any], ending: str
    ) -> tuple[Arguments, int]:
        value, end = self._read(text, skip_space(text, at), 0)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value, end

    def rule(self, schema: Mapping[str, Any], rules: CallRules) -> str:
        return self._rule(schema, schema, rules, 0)

    def _written(self, value: Any) -> str:
        quote = from_template(self.quote)
        if isinstance(value, str):
            return concat((quote, value, quote))
        if isinstance(value, Mapping):
            items = [concat((key, ":", self._written(item))) for key, item in value.items()]
            return concat(("{", from_template(",").join(items), "}"))
        if isinstance(value, list | tuple):
            return concat(("[", from_template(",").join(map(self._written, value)), "]"))
        return json.dumps(value)

    def _read(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if text.startswith(self.quote, at):
            return self._read_text(text, at)
        if text[at : at + 1] in ("{", "["):
            return self._read_items(text, at, depth)
        found = re.compile(r"[^,{}\[\]\s<]+").match(text, at)
        if found is None:
            raise ValueError(f"no value at character {at}")
        word = found[0]
        value = LITERALS[word] if word in LITERALS else decoded(word, 0)[0]
        return value, found.end()

    def _read_text(self, text: str, at: int) -> tuple[str, int]:
        start = at + len(self.quote)
        end = text.find(self.quote, start)
        if end < 0:
            raise ValueError("a text does not end")
        return text[start:end], end + len(self.quote)

    def _read_items(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        is_object, close = text[at] == "{", "}" if text[at] == "{" else "]"
        items: list[Any] = []
        keys: list[str] = []
        at = skip_space(text, at + 1)
        while not text.startswith(close, at):
            if items:
                if not text.startswith(",", at):
                    raise ValueError(f"no comma at character {at}")
                at = skip_space(text, at + 1)
            if is_object:
                key, at = self._read_key(text, at)
                keys.append(key)
            value, at = self._read(text, skip_space(text, at), depth + 1)
            items.append(value)
            at = skip_space(text, at)
            if at >= len(text):
                raise ValueError("it does not end")
        return (dict(zip(keys, items, strict=True)) if is_object else items), at + 1

    def _read_key(self, text: str, at: int) -> tuple[str, int]:
        if text.startswith(self.quote, at):
            key, at = self._read_text(text, at)
            at = skip_space(text, at)
        else:
            end = text.find(":", at)
            key, at = text[at:end].strip(), end
        if at < 0 or not text.startswith(":", at):
            raise ValueError("a key has no value")
        return key, at + 1

    def _rule(self, given: Any, root: Mapping[str, Any], rules: CallRules, depth: int) -> str:
        schema = resolved(given, root)
        choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
        if choices:
            return f"({' | '.join(rules.text(str(self._written(choice))) for choice in choices)})"
        parts = schema.get("anyOf") or schema.get("oneOf")
        if parts and depth < _MAX_RULES:
            return f"({' | '.join(self._rule(part, root, rules, depth + 1) for part in parts)})"
        types = sorted(types_of(schema, root))
        if not types or depth >= _MAX_RULES:
            return self._any_value(rules)
        ways = [self._typed(kind, schema, root, rules, depth) for kind in types]
        return f"({' | '.join(ways)})"

    def _typed(
        self,
        kind: str,
        schema: Mapping[str, Any],
        root: Mapping[str, Any],
        rules: CallRules,
        depth: int,
    ) -> str:
        quote = rules.text(self.quote)
        if kind == "string":
            return f"{quote} {rules.text_until(self.quote)}"
        if kind == "array":
            item = self._rule(schema.get("items", {}), root, rules, depth + 1)
            return f'"[" ({item} ("," {item})*)? "]"'
        if kind == "object":
            if "properties" not in schema and schema.get("additionalProperties", True) is not False:
                return self._any_value(rules, "object")

            def item_of(key: str, part: Any) -> str:
                return f"{rules.text(f'{key}:')} {self._rule(part, root, rules, depth + 1)}"

            return f'"{{" {rules.listed(schema, item_of, rules.text(","))} "}}"'
        return rules.json({**schema, "type": kind}, SPACING)

    def _any_value(self, rules: CallRules, kind: str = "value") -> str:
        quote = rules.text(self.quote)
        number = rules.json({"type": ["number", "boolean", "null"]}, SPACING)
        rules.add("bare_text", f"{quote} {rules.text_until(self.quote)}")
        rules.add("bare_item", '/[A-Za-z_][A-Za-z0-9_ -]*/ ":" bare_value')
        rules.add("bare_object", '"{" (bare_item ("," bare_item)*)? "}"')
        rules.add("bare_array", '"[" (bare_value ("," bare_value)*)? "]"')
        rules.add("bare_value", f"bare_text | bare_object | bare_array | {number}")
        return f"bare_{kind}"
