"""JSON Schemas by chance: satisfiable, and of bounded size, so that any answer soon ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_NAMES = ["a", "name", "größe", "x y", 'q"uote', "ключ", "n_1", "$id2", "back\\slash", "e/f"]
_PATTERNS = [
    r"^[a-z]{2,5}$",
    r"^\d{3}-\d{4}$",
    r"^(red|green|blue)$",
    r"^#[0-9a-fA-F]{6}$",
    r"^[^\"\\\s]{1,6}$",
    r"^(ab|c){1,4}d?$",
    r"^[А-Яа-я]{1,4}$",
]
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_VALUES = [None, True, False, 0, -7, 12.5, "", "yes", 'line\n"two"', "日本", [1, 2], {"k": [None]}]


def random_schema(seed: int) -> Schema:
    """The schema of a seed, with a `$defs` that it refers to now and then."""
    chance = random.Random(seed)
    root = _object(chance, 3) if chance.random() < 0.6 else _schema(chance, 3)
    root["$defs"] = {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "number", "minimum": 0}},
            "required": ["x", "y"],
            "additionalProperties": False,
        },
        # Recursive, but a value of it can end at once.
        "tree": {
            "type": "object",
            "properties": {
                "leaf": {"type": "boolean"},
                "more": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
            },
            "required": ["leaf"],
            "additionalProperties": False,
        },
    }
    return root


def _schema(chance: random.Random, depth: int) -> Schema:
    leaves: list[Callable[[random.Random], Schema]] = [
        _integer,
        _number,
        _string,
        _pattern,
        _constant,
        lambda _: {"type": "boolean"},
        lambda _: {"type": "null"},
        lambda c: {"$ref": f"#/$defs/{c.choice(['point', 'tree'])}"},
    ]
    branches = [_object, _array, _tuple, _union, _map]
    if depth == 0 or chance.random() < 0.45:
        return chance.choice(leaves)(chance)
    return chance.choice(branches)(chance, depth - 1)


def _object(chance: random.Random, depth: int) -> Schema:
    names = chance.sample(_NAMES, chance.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: _schema(chance, depth - 1 if depth else 0) for name in names},
        "required": [name for name in names if chance.random() < 0.6],
        "additionalProperties": False,
    }


def _array(chance: random.Random, depth: int) -> Schema:
    least = chance.randint(0, 2)
    return {
        "type": "array",
        "items": _schema(chance, depth),
        "minItems": least,
        "maxItems": least + chance.randint(0, 3),
    }


def _tuple(chance: random.Random, depth: int) -> Schema:
    items = [_schema(chance, depth) for _ in range(chance.randint(1, 3))]
    return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}


def _union(chance: random.Random, depth: int) -> Schema:
    if chance.random() < 0.3:
        return {"type": ["string", "null", "integer"], "maxLength": 8}
    return {"anyOf": [_schema(chance, depth) for _ in range(chance.randint(2, 3))]}


def _map(chance: random.Random, depth: int) -> Schema:
    keys = {"patternProperties": {"^k[0-9]$": _schema(chance, depth)}}
    return {"type": "object", **keys, "additionalProperties": False, "maxProperties": 3}


def _integer(chance: random.Random) -> Schema:
    low = chance.randint(-200, 200)
    schema: Schema = {"type": "integer"}
    if chance.random() < 0.7:
        schema[chance.choice(["minimum", "exclusiveMinimum"])] = low
    if chance.random() < 0.7:
        schema[chance.choice(["maximum", "exclusiveMaximum"])] = low + chance.randint(5, 5000)
    if chance.random() < 0.2:
        schema = {"type": "integer", "multipleOf": chance.randint(2, 9), "minimum": 0}
    return schema


def _number(chance: random.Random) -> Schema:
    low = round(chance.uniform(-50, 50), 2)
    return {"type": "number", "minimum": low, "maximum": low + chance.choice([0.25, 3, 1000])}


def _string(chance: random.Random) -> Schema:
    least = chance.randint(0, 6)
    return {"type": "string", "minLength": least, "maxLength": least + chance.randint(0, 12)}


def _pattern(chance: random.Random) -> Schema:
    return {"type": "string", "pattern": chance.choice(_PATTERNS)}


def _constant(chance: random.Random) -> Schema:
    if chance.random() < 0.3:
        return {"const": chance.choice(_VALUES)}
    return {"enum": chance.sample(_VALUES, chance.randint(1, 4))}


def brief_schema(seed: int) -> Schema:
    """Like `random_schema`, for models that like to go on: integers, texts, lists and trees are
    short. Numbers may still have any number of decimals.
    """
    schema = random_schema(seed)
    schema["$defs"]["tree"]["properties"]["more"] = {"type": ["null", "boolean"]}
    _shorten(schema)
    return schema


def _shorten(part: Any) -> None:
    if isinstance(part, list):
        for inner in part:
            _shorten(inner)
    if not isinstance(part, dict):
        return
    for inner in part.values():
        _shorten(inner)
    if part.get("type") == "integer":
        given = [part[key] for key in _BOUNDS if key in part]
        if not part.keys() & {"minimum", "exclusiveMinimum"}:
            part["minimum"] = min(given, default=0) - 100
        if not part.keys() & {"maximum", "exclusiveMaximum"}:
            part["maximum"] = max(given, default=0) + 100
    if "maxItems" in part:
        part["maxItems"] = max(part["minItems"], 1)
    if "maxLength" in part:
        part["maxLength"] = max(part.get("minLength", 0), 4)
    if "maxProperties" in part:
        part["maxProperties"] = 1
