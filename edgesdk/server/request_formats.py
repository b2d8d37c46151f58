"""The output formats that a request asks for, and what holds an answer to calls of tools.

OpenAI has `response_format`; llama-server has `grammar` and `json_schema` too, and vLLM
`structured_outputs` and, before that, `guided_json` and the like.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from edgesdk.errors import InvalidOption, MissingExtra, StructureError
from edgesdk.runtime import Runtime
from edgesdk.server.api_errors import ApiError, missing_parameter
from edgesdk.server.api_requests import BaseRequest, ResponseFormat, StructuredOutputs
from edgesdk.server.callable_tools import MAX_SCHEMA_CHARACTERS, CallableTools
from edgesdk.structured.output_format import OutputFormat, output_format_of
from edgesdk.structured.schema_check import SchemaChecker
from edgesdk.tools.call_grammar import tool_call_format, with_enforceable_schemas
from edgesdk.tools.calls import ToolCall, ToolCalls
from edgesdk.tools.tool_set import ToolSet

_FORMAT = "response_format"
_ANY_OBJECT = {"type": "object"}


def requested_format(request: BaseRequest) -> OutputFormat | None:
    """The output format that a request asks for; None for any text.

    Raises:
        ApiError: 400; it cannot be enforced, or there are two. 501 if llguidance is not installed.
    """
    asked = list(_asked_formats(request))
    if not asked:
        return None
    (param, kind, value), *others = asked
    if others:
        raise ApiError(400, f"{param} and {others[0][0]} exclude each other.", param=others[0][0])
    if kind == "schema" and len(json.dumps(value)) > MAX_SCHEMA_CHARACTERS:
        message = f"The schema is longer than {MAX_SCHEMA_CHARACTERS:,} characters."
        raise ApiError(400, message, param=param)
    with errors_at(param):
        return output_format_of(kind, _lark(value) if kind == "grammar" else value)


def _asked_formats(request: BaseRequest) -> Iterator[tuple[str, str, Any]]:
    """Each format that is asked for: its field, and what `output_format_of` takes."""
    if request.response_format is not None and request.response_format.type != "text":
        yield _response_format(request.response_format)
    outputs = request.structured_outputs or StructuredOutputs()
    for param, kind, value in (
        ("json_schema", "schema", request.json_schema),
        ("grammar", "grammar", request.grammar),
        ("guided_json", "schema", request.guided_json),
        ("guided_regex", "regex", request.guided_regex),
        ("guided_choice", "choices", request.guided_choice),
        ("guided_grammar", "grammar", request.guided_grammar),
        ("structured_outputs.json", "schema", outputs.definition),
        ("structured_outputs.json_object", "schema", outputs.json_object and _ANY_OBJECT),
        ("structured_outputs.regex", "regex", outputs.regex),
        ("structured_outputs.choice", "choices", outputs.choice),
        ("structured_outputs.grammar", "grammar", outputs.grammar),
    ):
        if value not in (None, False, ""):
            yield param, kind, _read_schema(value, param) if kind == "schema" else value


def _response_format(wanted: ResponseFormat) -> tuple[str, str, Any]:
    if wanted.type == "json_object":
        return _FORMAT, "schema", wanted.definition or _ANY_OBJECT
    param = f"{_FORMAT}.json_schema"
    if wanted.json_schema is None:
        raise missing_parameter(param)
    if wanted.json_schema.definition is None:
        raise missing_parameter(f"{param}.schema")
    return f"{param}.schema", "schema", wanted.json_schema.definition


def _read_schema(value: Any, param: str) -> Any:
    """A schema, which vLLM takes as a text too."""
    if isinstance(value, dict):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError):
        schema = None
    if not isinstance(schema, dict):
        raise ApiError(400, "The schema is not a JSON object.", param=param, code="invalid_value")
    return schema


def _lark(grammar: str) -> str:
    """A grammar as llguidance takes it; it may be one of llama.cpp's (GBNF)."""
    try:
        from llguidance.gbnf_to_lark import any_to_lark
    except ImportError:
        # The one who reads the grammar says what is missing.
        return grammar
    try:
        return str(any_to_lark(grammar))
    except Exception as error:
        raise InvalidOption(f"The grammar cannot be read: {error}") from None


def for_cloud(
    output_format: OutputFormat | None, wanted: ResponseFormat | None
) -> OutputFormat | None:
    """Add to the output format what the client wrote; a cloud gets that word by word."""
    if output_format is None or wanted is None or wanted.type == "text" or wanted.definition:
        return output_format
    schema = _ANY_OBJECT if wanted.json_schema is None else wanted.json_schema.definition
    assert schema is not None, "requested_format demands one"
    response_format: dict[str, Any] | None = wanted.model_dump(exclude_none=True, by_alias=True)
    if wanted.json_schema is not None and response_format is not None:
        response_format["json_schema"].setdefault("name", "answer")
    try:
        SchemaChecker(schema)
    except InvalidOption:
        # A cloud cannot be held to what cannot be checked.
        response_format = None
    return replace(output_format, response_format=response_format)


def tool_set_of(
    tools: CallableTools, choice: Any, runtime: Runtime, answer: OutputFormat | None
) -> ToolSet:
    """The tools as a request has them, for one model.

    Args:
        answer: what an answer without calls must look like; None for any text.
    """
    with errors_at("tools"):
        call_format = _call_format(tools, runtime, answer)

    def check(calls: Iterable[ToolCall], used_ids: Collection[str]) -> ToolCalls:
        allowed = list(calls) if tools.parallel else list(calls)[:1]
        return ToolCalls(
            call if tools.can_run(call) else replace(call, problem="it does not fit the tools")
            for call in allowed
        )

    syntax = runtime.tool_format.syntax
    return ToolSet(tools.specs, check, call_format, syntax, choice or "auto", tools.parallel)


def _call_format(
    tools: CallableTools, runtime: Runtime, answer: OutputFormat | None
) -> OutputFormat | None:
    """What holds an answer to calls, or its calls to their schemas; None where nothing does.

    Raises:
        InvalidOption: a schema cannot be enforced.
        MissingExtra: llguidance is not installed.
    """
    specs = [spec for spec in tools.specs if spec["function"]["name"] in tools.checks]
    if not (tools.must_call or tools.strict or answer is not None):
        return None
    if not tools.must_call:
        specs = [
            spec
            if spec["function"]["name"] in tools.strict
            else with_enforceable_schemas([spec])[0]
            for spec in specs
        ]
    return tool_call_format(
        runtime.tool_format,
        specs,
        runtime.encoder.tokenizer,
        choice="required" if tools.must_call else "auto",
        parallel=tools.parallel,
        answer=None if tools.must_call else answer,
    )


@contextmanager
def errors_at(param: str) -> Iterator[None]:
    """Turn errors of output formats into errors of the request's field `param`."""
    try:
        yield
    except (InvalidOption, StructureError) as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
    except MissingExtra as error:
        raise ApiError(501, str(error), param=param, code="missing_extra") from None
