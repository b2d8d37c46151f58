"""References of a JSON Schema that need themselves, so that no value of them ever ends.

This is the emptiness test of context-free grammars: the references known to have a value grow
until nothing is added.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from edgesdk.structure.subschemas import subschemas


def endless_reference(root: dict[str, Any]) -> str | None:
    """A `$ref` without any finite value, in a schema that is sound otherwise; None if all end."""
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
        first, least = schema.get("prefixItems", []), int(schema.get("minItems", 0))
        rest = schema.get("items") if least > len(first) else None
        return all(_ends(item, known) for item in (*first[:least], rest))
    return True


def _targets(root: dict[str, Any]) -> dict[str, Any]:
    """What each `$ref` that `root` can reach points to; see `_resolve`."""
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
    """What a JSON pointer (RFC 6901) in a `$ref` points to; None if it is something else."""
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
