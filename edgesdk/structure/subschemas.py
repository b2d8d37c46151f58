"""The schemas within a JSON Schema, with where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LIST = ("prefixItems", "allOf", "anyOf", "oneOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


def subschemas(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """`schema` and each schema inside it, outer before inner, as its path ("a.b[0]") and itself.

    Schemas that are only True or False are left out.
    """
    if isinstance(schema, dict):
        yield path, schema
        for step, part in _children(schema):
            yield from subschemas(part, f"{path}.{step}" if path else step)


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in schema.items():
        if key in _ONE:
            yield key, value
        elif key in _LIST and isinstance(value, list):
            yield from ((f"{key}[{index}]", part) for index, part in enumerate(value))
        elif key in _NAMED and isinstance(value, dict):
            yield from ((f"{key}.{name}", part) for name, part in value.items())
