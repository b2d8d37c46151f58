"""Check JSON values against a JSON Schema.

The schema may be a stranger's: nothing is fetched for it, and its regular expressions are run by an
engine whose time is linear.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from edgesdk.errors import InvalidOption, MissingExtra
from edgesdk.structured.json_schema import subschemas


class SchemaChecker:
    """Says what is wrong with values by one schema.

    Raises:
        InvalidOption: the schema is not one, or it cannot be checked.
        MissingExtra: jsonschema is not installed.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        validators = _jsonschema().validators
        _refuse_what_cannot_be_checked(schema)
        try:
            dialect = validators.validator_for(schema, default=_jsonschema().Draft202012Validator)
            dialect.check_schema(schema)
        except Exception as error:
            # Whatever a metaschema cannot cope with is no schema.
            said = getattr(error, "message", type(error).__name__)
            raise InvalidOption(f"It is not a JSON Schema: {said[:300]}") from None
        # An empty registry fetches nothing.
        registry = import_module("referencing").Registry()
        self._validator = validators.extend(dialect, _KEYWORDS)(schema, registry=registry)

    def errors(self, value: Any) -> list[str]:
        """What is wrong with `value`, each with its place; empty where it fits."""
        try:
            return [error_at(e.path, e.message) for e in self._validator.iter_errors(value)]
        except Exception as error:
            # A reference that never ends, or ends nowhere: nothing fits it.
            return [f"the schema cannot be followed ({type(error).__name__})"]

    def accepts(self, value: Any) -> bool:
        """Whether `value` fits."""
        try:
            return bool(self._validator.is_valid(value))
        except Exception:
            return False


def schema_errors(schema: Mapping[str, Any], value: Any) -> list[str]:
    """What is wrong with `value` by a schema; empty where jsonschema is not installed."""
    try:
        return SchemaChecker(schema).errors(value)
    except MissingExtra:
        return []
    except InvalidOption as error:
        return [f"the schema cannot be followed: {error.message}"]


def error_at(path: Any, message: str) -> str:
    """A message with the place that it is about."""
    place = ".".join(map(str, path))
    return f"{place}: {message}" if place else message


def _jsonschema() -> ModuleType:
    try:
        return import_module("jsonschema")
    except ImportError:
        raise MissingExtra(
            "jsonschema", extra="structure", needed_for="Checking a value by its schema"
        ) from None


def _refuse_what_cannot_be_checked(schema: Mapping[str, Any]) -> None:
    keywords: set[str] = set()
    for path, part in subschemas(dict(schema)):
        keywords.update(part)
        reference = part.get("$ref", "#")
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise InvalidOption(
                f"The '$ref' at {path!r} must refer to a part of the same schema ('#/...')."
            )
        patterns = [part["pattern"]] if "pattern" in part else []
        if isinstance(named := part.get("patternProperties"), dict):
            patterns += named
        for pattern in patterns:
            if isinstance(pattern, str) and _matcher(pattern) is None:
                raise InvalidOption(
                    f"The 'pattern' at {path!r} is not a regular expression without look-around"
                    " and back-references."
                )
    if keywords >= {"patternProperties", "unevaluatedProperties"}:
        raise InvalidOption(
            "'patternProperties' and 'unevaluatedProperties' cannot be checked together."
        )


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield _jsonschema().ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, named: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, subschema in named.items():
        for key, value in instance.items():
            if _matches(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, extra: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in named or any(_matches(pattern, key) for pattern in patterns):
            continue
        if validator.is_type(extra, "object"):
            yield from validator.descend(value, extra, path=key)
        elif not extra:
            yield _jsonschema().ValidationError(
                f"Additional properties are not allowed ({key!r} was unexpected)"
            )


# Those that jsonschema matches with Python's backtracking engine.
_KEYWORDS = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
}


def _matches(pattern: str, text: str) -> bool:
    matcher = _matcher(pattern)
    return matcher is not None and matcher(text)


@functools.lru_cache(maxsize=256)
def _matcher(pattern: str) -> Callable[[str], bool] | None:
    """Whether a text has a match of `pattern` somewhere; None where Rust's engine does not know
    the pattern."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    try:
        schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
        return SchemaValidator(schema).isinstance_python
    except SchemaError:
        return None
