"""What is wrong with the arguments of a call, in words for the model.

Answers that are held to a grammar have no such faults, but for what a schema cannot say. Others
do: where llguidance is missing, and where a model wrote a call in a way that is not its family's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesdk.tools.function import Tool


def faults_of_binding(tool: Tool, arguments: dict[str, Any]) -> list[str]:
    """Why a function's type hints refuse the arguments; empty where they do not."""
    from pydantic import ValidationError

    try:
        tool.bind(arguments)
    except ValidationError as error:
        return [_fault(fault["loc"], fault["msg"]) for fault in error.errors()]
    return []


def faults_of_schema(schema: Mapping[str, Any] | None, value: Any) -> list[str]:
    """Why a JSON Schema refuses a value; empty where it does not, or where the package jsonschema
    is not installed. Without a schema, a value is arguments of a tool that takes none."""
    if schema is None:
        return [_fault([name], "not an argument") for name in value]
    try:
        from jsonschema.validators import validator_for  # type: ignore[import-untyped]
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError:
        return []
    try:
        # An empty registry: references to the network are not followed.
        validator = validator_for(schema)(schema, registry=Registry())
        return [_fault(fault.path, fault.message) for fault in validator.iter_errors(value)]
    except Unresolvable as error:
        return [f"the schema of the tool refers to what is not in it ({error})"]


def _fault(path: Any, message: str) -> str:
    place = ".".join(map(str, path))
    return f"{place}: {message}" if place else message
