"""Whether a call's arguments fit the JSON Schema that a client gave for them.

The schema is a stranger's: it gets nothing fetched, and no regular expression of it is run by
an engine that backtracks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from edgesdk.errors import MissingExtra
from edgesdk.server.api_errors import ApiError
from edgesdk.structured.json_schema import subschemas

# Compiling and checking take about a second up to here, and some more in proportion.
MAX_CHARACTERS = 100_000


def argument_check(schema: dict[str, Any], *, param: str) -> Callable[[dict[str, Any]], bool]:
    """A function that says whether arguments fit `schema`.

    Args:
        param: where the schema stands in the request, for errors.

    Raises:
        ApiError: 400; it is no schema of an object, or none that can be checked.
        MissingExtra: jsonschema is not installed.
    """
    if schema.get("type", "object") != "object":
        raise ApiError(
            400,
            "The parameters must be a schema of type 'object'.",
            param=param,
            code="invalid_function_parameters",
        )
    return value_check(schema, param=param)


def value_check(schema: dict[str, Any], *, param: str) -> Callable[[Any], bool]:
    """`argument_check` for a schema of any values."""
    jsonschema, registry = _jsonschema()
    problem = _problem(schema)
    if problem is not None:
        raise ApiError(400, problem, param=param, code="invalid_function_parameters")
    try:
        dialect = jsonschema.validators.validator_for(
            schema, default=jsonschema.Draft202012Validator
        )
        dialect.check_schema(schema)
    except Exception as error:
        # Whatever a metaschema cannot cope with is no schema.
        said = getattr(error, "message", type(error).__name__)
        raise ApiError(
            400,
            f"The parameters are no JSON Schema: {said[:300]}",
            param=param,
            code="invalid_function_parameters",
        ) from None
    safe = jsonschema.validators.extend(dialect, {"pattern": _pattern})
    validator = safe(schema, registry=registry)

    def fits(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except Exception:
            # A reference that never ends, or ends nowhere: nothing fits it.
            return False

    return fits


def _jsonschema() -> tuple[ModuleType, Any]:
    """The package, and a registry from which it fetches nothing."""
    try:
        return import_module("jsonschema"), import_module("referencing").Registry()
    except ImportError:
        raise MissingExtra("jsonschema", extra="server", needed_for="Calling tools") from None


def _problem(schema: dict[str, Any]) -> str | None:
    """Why a schema cannot be checked, beyond its form; None if it can."""
    written = json.dumps(schema)
    if len(written) > MAX_CHARACTERS:
        return f"The schema is longer than {MAX_CHARACTERS:,} characters."
    if '"patternProperties"' in written:
        # These are matched in several places of jsonschema, by Python's backtracking engine.
        return "'patternProperties' is not supported in a function's parameters."
    for path, part in subschemas(schema):
        reference = part.get("$ref", "#")
        if not isinstance(reference, str) or not reference.startswith("#"):
            return f"The '$ref' at {path!r} must refer to a part of the same schema ('#/...')."
        pattern = part.get("pattern")
        if isinstance(pattern, str) and _matcher(pattern) is None:
            return (
                f"The 'pattern' at {path!r} is no regular expression without look-around and"
                " back-references."
            )
    return None


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """The keyword `pattern`, in Rust's engine, whose time is linear."""
    if isinstance(instance, str):
        matcher = _matcher(pattern)
        if matcher is None or not matcher(instance):
            yield _jsonschema()[0].ValidationError(f"{instance!r} does not match {pattern!r}")


def _matcher(pattern: str) -> Callable[[str], bool] | None:
    """Whether a text has a match of `pattern` somewhere; None where Rust does not know it."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    try:
        schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
        return SchemaValidator(schema).isinstance_python
    except SchemaError:
        return None
