"""Whether the keywords that are read here have values of the types that JSON Schema gives them.

llguidance checks the parts that it compiles; definitions that nothing refers to are not among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgesdk.errors import InvalidOption
from edgesdk.structure.subschemas import subschemas


def check_shape(schema: dict[str, Any]) -> None:
    """Raise `InvalidOption`, naming the place, unless the keywords have sensible types."""
    for path, part in subschemas(schema):
        for key, (is_valid, wanted) in _SHAPES.items():
            if key in part and not is_valid(part[key]):
                at = f"{path}.{key}" if path else key
                raise InvalidOption(f"The schema is not valid: {at!r} is not {wanted}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value))


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict | bool) for item in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_type(value: Any) -> bool:
    return _is_text(value) or _is_texts(value)


_TEXT = (_is_text, "a text")
_COUNT = (_is_count, "a count")
_OBJECT = (_is_object, "an object with texts as keys")
_SCHEMAS = (_is_schemas, "a list of schemas")

_SHAPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "$ref": _TEXT,
    "type": (_is_type, "a text or a list of texts"),
    "required": (_is_texts, "a list of texts"),
    "minProperties": _COUNT,
    "minItems": _COUNT,
    "properties": _OBJECT,
    "patternProperties": _OBJECT,
    "$defs": _OBJECT,
    "definitions": _OBJECT,
    "prefixItems": _SCHEMAS,
    "allOf": _SCHEMAS,
    "anyOf": _SCHEMAS,
    "oneOf": _SCHEMAS,
}
