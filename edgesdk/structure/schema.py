"""Schemas: from a Python type or a JSON Schema to a grammar and a reader of answers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from edgesdk.errors import InvalidOption, RejectedStructure
from edgesdk.panics import panics_as
from edgesdk.structure.asking import Structure
from edgesdk.structure.dialects import narrowed
from edgesdk.structure.finite import endless_reference
from edgesdk.structure.guidance import guidance
from edgesdk.structure.subschemas import subschemas
from edgesdk.structure.wellformed import check_shape

# Small models that may write whitespace between JSON tokens tend to never stop doing so.
_COMPACT = {"whitespace_flexible": False}


def schema_structure(schema: Any) -> Structure:
    """The structure of a pydantic type or a JSON Schema.

    Raises:
        InvalidOption: it is neither, or cannot be enforced; the message names the keyword.
    """
    if isinstance(schema, dict):
        return Structure(json_grammar(schema), _read_json)
    described, read = _python_type(schema)
    return Structure(json_grammar(described), read)


def json_schema_of(schema: Any) -> dict[str, Any]:
    """The JSON Schema of what `schema_structure` takes.

    Raises:
        InvalidOption: it is neither a type that pydantic knows nor a JSON Schema.
    """
    return schema if isinstance(schema, dict) else _python_type(schema)[0]


def json_grammar(schema: dict[str, Any]) -> str:
    """llguidance's grammar of the compact JSON values of a schema.

    Raises:
        InvalidOption: see `schema_structure`.
    """
    check_shape(schema)
    problem = _problem(schema)
    if problem is not None:
        raise InvalidOption(
            f"The schema cannot be enforced: {_blame(schema)}{problem}",
            hint="Leave that out, or check it on the reply.",
        )
    for path, part in subschemas(schema):
        _check_properties(path, part)
    endless = endless_reference(schema)
    if endless is not None:
        raise InvalidOption(
            f"The schema cannot be enforced: the '$ref' to {endless!r} needs itself, so no value"
            " of it ever ends.",
            hint="Let the recursion end: with an optional property, or another branch of 'anyOf'.",
        )
    return _compile(schema)


def _compile(schema: dict[str, Any]) -> str:
    matcher = guidance().LLMatcher
    grammar: str = matcher.grammar_from_json_schema(narrowed(schema), overrides=_COMPACT)
    return grammar


def _problem(schema: dict[str, Any]) -> str | None:
    """Why llguidance refuses a schema; None if it does not."""
    # The first of these is for llguidance's options, of which `lenient` would ignore keywords.
    if "x-guidance" in schema:
        return "'x-guidance' is not a keyword of JSON Schema."
    try:
        with panics_as("llguidance", InvalidOption):
            grammar = _compile(schema)
            problem: str = guidance().LLMatcher.validate_grammar(grammar)
    except InvalidOption as error:
        return f"{error}."
    except (TypeError, ValueError, RecursionError) as error:
        return f"it is not JSON ({error})."
    return " ".join(problem.split()) or None


def _blame(schema: dict[str, Any]) -> str:
    """The smallest refused part, and the keyword without which it would pass, as a prefix."""
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}

    def refused(part: dict[str, Any]) -> bool:
        return _problem({**shared, **part}) is not None

    # Outer parts come first, so the last one refused has no refused part within. A reference is
    # refused where its target is, and the target is the one to name.
    parts = [(path, part) for path, part in subschemas(schema) if not path or "$ref" not in part]
    path, part = [(path, part) for path, part in parts if refused(part)][-1]
    # Without its type a part nearly always passes, so that is blamed last.
    for key in sorted(part, key=lambda key: key in ("type", "properties", "items")):
        if key not in shared and not refused({k: v for k, v in part.items() if k != key}):
            path = f"{path}.{key}" if path else key
            break
    return f"{path!r}: " if path else ""


def _check_properties(path: str, part: dict[str, Any]) -> None:
    """Refuse a count of properties that repeated names could fake.

    A grammar cannot keep names apart that the schema does not list, and in parsed JSON two
    properties of one name are one.
    """
    least = part.get("minProperties", 0)
    named = len(set(part.get("required", ())))
    if least > named + 1:
        at = f"{path}.minProperties" if path else "minProperties"
        raise InvalidOption(
            f"The schema cannot be enforced: {at!r} is {least}, but only {named} names are given"
            " in 'required', and others could come twice.",
            hint="Name them in 'required', or use an array.",
        )


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # Valid JSON, but nested too deeply or with an integer too long for Python.
        raise RejectedStructure(f"Python cannot read the answer: {error}.", text=text) from None


def _python_type(annotation: Any) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """JSON Schema and reader of a type that pydantic knows."""
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    from edgesdk.structure.closed import ClosedJsonSchema

    if inspect.isroutine(annotation):
        # Pydantic would take it for its arguments, and call it to read an answer.
        raise InvalidOption(f"'schema' is the function {annotation!r}.", hint="Give a type.")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        schema = adapter.json_schema(schema_generator=ClosedJsonSchema)
    except (PydanticUserError, TypeError) as error:
        raise InvalidOption(
            f"'schema' is {annotation!r}, which has no JSON Schema: {str(error).splitlines()[0]}",
            hint="Give a pydantic model, a dataclass, a TypedDict, or a JSON Schema as a dict.",
        ) from None

    def read(text: str) -> Any:
        try:
            return adapter.validate_json(text)
        except ValidationError as error:
            # The schema is kept; what it cannot say is left: validators, the calendar and so on.
            raise RejectedStructure(
                f"The answer has the form of the schema, but not a valid value: {error}", text=text
            ) from error

    return schema, read
