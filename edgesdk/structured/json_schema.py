"""Read JSON Schemas: their parts, whether they are well-formed, and whether their values end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from edgesdk.errors import InvalidOption

_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LIST = ("prefixItems", "allOf", "anyOf", "oneOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")


def subschemas(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give `schema` and each schema inside it, outer before inner, each with its path ("a.b[0]").

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


def check_keywords(schema: dict[str, Any]) -> None:
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


def endless_reference(root: dict[str, Any]) -> str | None:
    """Find a `$ref` that needs itself, so that no value of it ever ends; None where all end.

    This is the emptiness test of context-free grammars: the references known to have a value grow
    until nothing is added. The schema must be sound otherwise."""
    targets = _targets(root)
    # References other than into this schema are refused elsewhere.
    known = {reference for reference, target in targets.items() if target is None}
    while True:
        found = {ref for ref, target in targets.items() if ref in known or _ends(target, known)}
        if found == known:
            return next((ref for ref in targets if ref not in known), None)
        known = found


def _ends(schema: Any, known: set[str]) -> bool:
    if not isinstance(schema, dict):
        return schema is not False
    if "$ref" in schema and schema["$ref"] not in known:
        return False
    if not all(_ends(part, known) for part in schema.get("allOf", ())):
        return False
    for either in ("anyOf", "oneOf"):
        if either in schema and not any(_ends(part, known) for part in schema[either]):
            return False
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "const" in schema or "enum" in schema or not kinds:
        return True
    return any(_kind_ends(kind, schema, known) for kind in kinds)


def _kind_ends(kind: str, schema: dict[str, Any], known: set[str]) -> bool:
    if kind == "object":
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        return all(
            _ends(properties.get(name, others), known) for name in schema.get("required", ())
        )
    if kind == "array":
        first, min_items = schema.get("prefixItems", []), int(schema.get("minItems", 0))
        rest = schema.get("items") if min_items > len(first) else None
        return all(_ends(item, known) for item in (*first[:min_items], rest))
    return True


def _targets(root: dict[str, Any]) -> dict[str, Any]:
    """Map each `$ref` that `root` can reach to what it points to; see `_resolve`."""
    targets: dict[str, Any] = {}
    waiting: list[Any] = [{k: v for k, v in root.items() if k not in ("$defs", "definitions")}]
    while waiting:
        references = [p["$ref"] for _, p in subschemas(waiting.pop()) if "$ref" in p]
        for reference in references:
            if reference not in targets:
                targets[reference] = _resolve(root, reference)
                waiting.append(targets[reference])
    return targets


def _resolve(root: dict[str, Any], reference: str) -> Any:
    """Follow the JSON pointer (RFC 6901) of a `$ref`; None where it is something else."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    target: Any = root
    for step in unquote(reference).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            target = target[int(name)] if name.isdecimal() and int(name) < len(target) else None
        else:
            target = target.get(name) if isinstance(target, dict) else None
    return target


class StrictJsonSchema(GenerateJsonSchema):
    """Pydantic's schemas with `additionalProperties` false wherever the type leaves it open.

    By default pydantic ignores properties that it does not know. A model that may write them
    would spend its answer on them.
    """

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        return _forbid_extra(super().model_schema(schema))

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        return _forbid_extra(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: Any) -> JsonSchemaValue:
        return _forbid_extra(super().typed_dict_schema(schema))


def _forbid_extra(schema: JsonSchemaValue) -> JsonSchemaValue:
    if schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema
