"""Tell which JSON types a schema of arguments allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MAX_REFERENCES = 8


def parameters_of(name: str, specs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The schema of a tool's arguments; {} where there is none.

    Args:
        specs: tools in the form of OpenAI's API.
    """
    functions = [spec.get("function") or {} for spec in specs]
    schema = next((f.get("parameters") for f in functions if f.get("name") == name), None)
    return resolved(schema, schema) if isinstance(schema, Mapping) else {}


def types_of(schema: Any, root: Mapping[str, Any], *, depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema names; none where it names none.

    Args:
        root: what the schema's references refer to.
    """
    schema = resolved(schema, root)
    types = {kind for kind in _listed(schema.get("type")) if isinstance(kind, str)}
    if depth < _MAX_REFERENCES:
        for choice in (*_listed(schema.get("anyOf")), *_listed(schema.get("oneOf"))):
            types |= types_of(choice, root, depth=depth + 1)
    values = [*_listed(schema.get("enum")), schema.get("const")]
    return frozenset(types | {"string" for value in values if isinstance(value, str)})


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema, or the one in `root` that it refers to (`#/$defs/NAME`)."""
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        schema = root
        for part in reference[2:].split("/"):
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


def json_type(value: Any) -> str:
    """The JSON type of a value; whole numbers are integers."""
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return kinds.get(type(value), "object")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
