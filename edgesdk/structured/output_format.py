"""Output formats: from what a request asks for to a grammar, and from the answer to its value."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import IncompleteStructure, InvalidOption, RejectedStructure
from edgesdk.generation.constraint import Constraint
from edgesdk.generation.finish import FinishReason
from edgesdk.options import Options, OptionsKwargs
from edgesdk.structured.grammar_constraint import load_llguidance
from edgesdk.structured.json_schema import check_keywords, endless_reference, subschemas
from edgesdk.structured.patterns import with_portable_patterns
from edgesdk.structured.schema_check import schema_errors
from edgesdk.system.panics import panics_as

OUTPUT_FORMATS = ("schema", "regex", "choices", "grammar")


class FormatKwargs(OptionsKwargs, total=False):
    """The fields of `Options` as keyword arguments, and at most one output format.

    schema: a pydantic model, dataclass, TypedDict or other type that pydantic knows, or a JSON
        Schema (draft 2020-12) as a dict. The reply's `parsed` is an instance, or the JSON value.
        Properties come in the schema's order, without whitespace between them.
    regex: a regular expression (Rust's syntax, without look-around) that the whole answer matches.
    choices: the answer is one of these texts.
    grammar: a Lark grammar with a rule `start`, in llguidance's dialect.
    """

    schema: Any
    regex: str
    choices: Sequence[str]
    grammar: str


@dataclass(frozen=True)
class OutputFormat:
    """What an answer must look like.

    Attributes:
        grammar: what llguidance compiles; known to be valid. None for any text.
        read: from the whole text of an answer that the grammar held to its value.
        response_format: what a cloud is told, in the words of OpenAI's API; None where that has no
            words for the format, so that only the device can be held to it.
        validate: from a text that nothing held to its value; raises RejectedStructure where the
            text has not the format.
        is_over: whether an answer so far has said all that it will, though its grammar would let it
            go on; None where only the grammar tells.
    """

    grammar: str | None
    read: Callable[[str], Any]
    response_format: dict[str, Any] | None = None
    validate: Callable[[str], Any] | None = None
    is_over: Callable[[str], bool] | None = None


def format_from_kwargs(kwargs: Mapping[str, object], options: Options) -> OutputFormat | None:
    """Make the output format that keyword arguments ask for; None for any text.

    Raises:
        InvalidOption: more than one is asked for, there are stop texts, or it cannot be enforced.
        MissingExtra: one is asked for, and llguidance is not installed.
    """
    formats = [name for name in OUTPUT_FORMATS if kwargs.get(name) is not None]
    if not formats:
        return None
    if len(formats) > 1:
        raise InvalidOption(
            f"{' and '.join(repr(name) for name in formats)} exclude each other.",
            hint="An answer has one output format: give one of them.",
        )
    if options.stops:
        raise InvalidOption(
            f"'stop' and {formats[0]!r} exclude each other: a stop text would cut the answer"
            " short.",
            hint="Leave 'stop' out; the answer ends where its format does.",
        )
    return output_format_of(formats[0], kwargs[formats[0]])


def output_format_of(kind: str, value: Any) -> OutputFormat:
    """Make the output format `kind` ("schema", "regex", "choices" or "grammar").

    Raises:
        InvalidOption: it cannot be enforced.
        MissingExtra: llguidance is not installed.
    """
    if kind == "schema":
        return format_of_schema(value)
    matcher = load_llguidance().LLMatcher
    if kind == "choices":
        return OutputFormat(matcher.grammar_from_regex(_alternatives(value)), read=str)
    if not isinstance(value, str):
        raise InvalidOption(f"{kind!r} is {value!r}, not a text.")
    make = matcher.grammar_from_regex if kind == "regex" else matcher.grammar_from_lark
    with panics_as("llguidance", InvalidOption):
        grammar: str = make(value)
        problem = matcher.validate_grammar(grammar)
    if problem:
        raise InvalidOption(
            f"{kind!r} cannot be enforced: {_one_line(problem)}",
            hint="The syntax is Rust's, without look-around and back-references."
            if kind == "regex"
            else "The syntax is llguidance's dialect of Lark, with a rule 'start'.",
        )
    return OutputFormat(grammar, read=str)


def _alternatives(choices: Any) -> str:
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise InvalidOption(f"'choices' is {choices!r}, not a list of texts.", hint="Name some.")
    for choice in choices:
        if not isinstance(choice, str) or not choice:
            raise InvalidOption(f"'choices' has {choice!r}, which is not a text to answer with.")
        if any("\ud800" <= character <= "\udfff" for character in choice):
            raise InvalidOption(f"'choices' has {choice!r}, which is not valid Unicode.")
    return "|".join("".join(map(_literal, choice)) for choice in choices)


def _literal(character: str) -> str:
    """Write a character for a regular expression so that it matches only itself."""
    plain = character.isascii() and character.isalnum()
    return character if plain else f"\\x{{{ord(character):x}}}"


def _one_line(problem: str) -> str:
    """Cut the picture of the place from llguidance's message."""
    lines = [line.strip() for line in problem.splitlines()]
    return " ".join(line for line in lines if line.strip("^ ") and " | " not in line)


# Small models that may write whitespace between JSON tokens tend to never stop doing so.
_COMPACT = {"whitespace_flexible": False}


def format_of_schema(schema: Any) -> OutputFormat:
    """Make the output format of a pydantic type or a JSON Schema.

    Raises:
        InvalidOption: it is neither, or cannot be enforced; the message names the keyword.
    """
    described, read = (schema, _read_json) if isinstance(schema, dict) else _python_type(schema)
    return OutputFormat(
        json_grammar(described),
        read,
        {"type": "json_schema", "json_schema": {"name": "answer", "schema": described}},
        lambda text: _validated(described, read, text),
    )


def json_grammar(schema: dict[str, Any]) -> str:
    """Write llguidance's grammar of the compact JSON values of a schema.

    Raises:
        InvalidOption: see `format_of_schema`.
    """
    check_keywords(schema)
    problem = _refusal_reason(schema)
    if problem is not None:
        raise InvalidOption(
            f"The schema cannot be enforced: {_refused_part(schema)}{problem}",
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
    matcher = load_llguidance().LLMatcher
    grammar: str = matcher.grammar_from_json_schema(
        with_portable_patterns(schema), overrides=_COMPACT
    )
    return grammar


def _refusal_reason(schema: dict[str, Any]) -> str | None:
    """Why llguidance refuses a schema; None if it does not."""
    # The first of these is for llguidance's options, of which `lenient` would ignore keywords.
    if "x-guidance" in schema:
        return "'x-guidance' is not a keyword of JSON Schema."
    try:
        with panics_as("llguidance", InvalidOption):
            grammar = _compile(schema)
            problem: str = load_llguidance().LLMatcher.validate_grammar(grammar)
    except InvalidOption as error:
        return f"{error}."
    except (TypeError, ValueError, RecursionError) as error:
        return f"it is not JSON ({error})."
    return " ".join(problem.split()) or None


def _refused_part(schema: dict[str, Any]) -> str:
    """The smallest refused part, and the keyword without which it would pass, as a prefix."""
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}

    def refused(part: dict[str, Any]) -> bool:
        return _refusal_reason({**shared, **part}) is not None

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
    min_count = part.get("minProperties", 0)
    named = len(set(part.get("required", ())))
    if min_count > named + 1:
        at = f"{path}.minProperties" if path else "minProperties"
        raise InvalidOption(
            f"The schema cannot be enforced: {at!r} is {min_count}, but only {named} names are"
            " given in 'required', and others could come twice.",
            hint="Name them in 'required', or use an array.",
        )


def _validated(schema: dict[str, Any], read: Callable[[str], Any], text: str) -> Any:
    """Read the value of a text that nothing held to `schema`."""
    try:
        errors = schema_errors(schema, json.loads(text))
    except (ValueError, RecursionError) as error:
        errors = [f"it is not JSON ({error})"]
    if errors:
        raise RejectedStructure(
            f"The answer does not fit its format: {'; '.join(errors)}", text=text
        )
    return read(text)


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # Valid JSON, but nested too deeply or with an integer too long for Python.
        raise RejectedStructure(f"Python cannot read the answer: {error}.", text=text) from None


def _python_type(annotation: Any) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """Make the JSON Schema and the reader of a type that pydantic knows."""
    from pydantic import TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    from edgesdk.structured.json_schema import StrictJsonSchema

    if inspect.isroutine(annotation):
        # Pydantic would take it for its arguments, and call it to read an answer.
        raise InvalidOption(f"'schema' is the function {annotation!r}.", hint="Give a type.")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        schema = adapter.json_schema(schema_generator=StrictJsonSchema)
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
                f"The answer fits the schema, but its value is not valid: {error}", text=text
            ) from error

    return schema, read


_CUT = {
    "length": ("the tokens ran out", "Raise max_tokens, or bound the format's texts and lists."),
    "deadline": ("the deadline passed", "Allow more time, or ask for less."),
    "stop": ("the model ended it", "Try again."),
    "repetition": ("it went in a cycle", "Try again."),
}


def read_answer(
    read: Callable[[str], Any], constraint: Constraint | None, text: str, reason: FinishReason
) -> Any | None:
    """Read the value of an answer that ended for `reason`; None where it was cancelled.

    Args:
        read: from the whole text to the value.
        constraint: what held the answer; None where nothing did.

    Raises:
        IncompleteStructure: it was cut short.
        RejectedStructure: it fits its format, and still has no value.
    """
    if reason == "cancelled":
        return None
    if constraint is not None and not constraint.complete:
        what, hint = _CUT[reason]
        raise IncompleteStructure(
            f"The answer is incomplete: {what} after {len(text):,} characters.",
            text=text,
            hint=hint,
        )
    return read(text)
