"""Write the parts of a grammar of calls, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from edgesdk.text.control_tokens import silent_tokens
from edgesdk.text.tokenizer import Tokenizer
from edgesdk.tools.schema_types import resolved

ANY_TEXT = r"(.|\n)*"


class CallRules:
    """Rules of one grammar, which the notations of arguments add to.

    Args:
        tokenizer: of the model that answers; marks may be control tokens, which have no text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._rules: dict[str, str] = {}

    @property
    def lines(self) -> list[str]:
        """All rules that were added."""
        return [f"{head}: {body}" for head, body in self._rules.items()]

    def add(self, name: str, body: str) -> str:
        """Add a rule; one of the same name is replaced."""
        self._rules[name] = body
        return name.partition("[")[0]

    def text(self, text: str) -> str:
        """A text as it is, with the control tokens in it."""
        return " ".join(map(symbol, self.pieces(text)))

    def pieces(self, text: str) -> list[str | int]:
        """A text cut at its control tokens, which are ids."""
        parts = self._control.split(text)
        return [self._ids.get(part, part) for part in parts if part]

    def text_until(self, ending: str) -> str:
        """Any text up to `ending`, and the ending."""
        first, *rest = self.pieces(ending)
        self.add("ANY", f"/{ANY_TEXT}/")
        body = f"ANY {symbol(first)}"
        # Lazy: a text goes on to the first mark of its end. No text has a control token in it.
        head = next((head for head, known in self._rules.items() if known == body), None)
        named = self.add(head or f"until_{len(self._rules)}[lazy]", body)
        written = named if isinstance(first, str) else body
        return " ".join([written, *map(symbol, rest)])

    def json(self, schema: Mapping[str, Any], guidance: Mapping[str, Any]) -> str:
        """A JSON value of a schema.

        Args:
            guidance: llguidance's options for it.
        """
        return f"%json {json.dumps({**schema, 'x-guidance': guidance})}"

    def listed(
        self, schema: Mapping[str, Any], item: Callable[[str, Any], str], separator: str
    ) -> str:
        """The properties of a schema in its order, with a separator between those that are there.

        Args:
            item: what stands for a property, of its key and its schema.
        """
        properties = resolved(schema, schema).get("properties") or {}
        required = schema.get("required", ())
        follows = starts = ""
        for key, given in reversed(properties.items()):
            written = self.add(f"item_{len(self._rules)}", item(key, given))
            first = f"{written} {follows}".rstrip()
            if key in required:
                starts = first
                follows = self.add(f"item_{len(self._rules)}", f"{separator} {first}")
            else:
                starts = f"({first} | {starts})" if starts else f"({first})?"
                starts = self.add(f"item_{len(self._rules)}", starts)
                more = f"({separator} {written})? {follows}".rstrip()
                follows = self.add(f"item_{len(self._rules)}", more)
        return starts

    @cached_property
    def _ids(self) -> dict[str, int]:
        return silent_tokens(self._tokenizer)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        ordered = sorted(self._ids, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, ordered)) or '(?!)'})")


def symbol(piece: str | int) -> str:
    """A piece of a text in a grammar; numbers are ids of control tokens."""
    if isinstance(piece, int):
        return f"<[{piece}]>"
    return json.dumps(piece, ensure_ascii=False)
