"""Check a call's arguments by the JSON Schema that a client gave for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from edgesdk.errors import InvalidOption
from edgesdk.server.api_errors import ApiError
from edgesdk.structured.schema_check import SchemaChecker

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
        raise _refusal("The parameters must be a schema of type 'object'.", param)
    return value_check(schema, param=param)


def value_check(schema: dict[str, Any], *, param: str) -> Callable[[Any], bool]:
    """`argument_check` for a schema of any values."""
    written = json.dumps(schema)
    if len(written) > MAX_CHARACTERS:
        raise _refusal(f"The schema is longer than {MAX_CHARACTERS:,} characters.", param)
    if '"patternProperties"' in written:
        raise _refusal("'patternProperties' is not supported in a function's parameters.", param)
    try:
        return SchemaChecker(schema).accepts
    except InvalidOption as error:
        raise _refusal(error.message, param) from None


def _refusal(message: str, param: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_function_parameters")
