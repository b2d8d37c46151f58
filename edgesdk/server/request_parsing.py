"""Turns a request's body into a `Request` for a model, and into the builder of its response."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from starlette.datastructures import Headers

from edgesdk.errors import InvalidOption, MissingExtra, StructureError
from edgesdk.generation.prefill import check_fits
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.request import HybridRequest
from edgesdk.request import Request
from edgesdk.runtime import Runtime
from edgesdk.server.answers import AnswerSource, DeviceSource, HybridSource
from edgesdk.server.api_errors import ApiError, missing_parameter
from edgesdk.server.api_requests import ChatRequest, CompletionRequest, ResponseFormat, parse
from edgesdk.server.callable_tools import (
    MAX_SCHEMA_CHARACTERS,
    AnswerReader,
    CallableTools,
    PlainTextReader,
    ToolCallReader,
    callable_tools_of,
)
from edgesdk.server.chat_messages import template_messages, uses_tools
from edgesdk.server.hybrid_routing import (
    HoldPolicy,
    HybridClients,
    RequestRouting,
    requested_routing,
)
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.responses import (
    ChatResponseBuilder,
    CompletionResponseBuilder,
    ResponseBuilder,
    ResponseMetadata,
)
from edgesdk.server.settings import ServerSettings
from edgesdk.structured.output_format import OutputFormat, output_format_of
from edgesdk.structured.schema_check import SchemaChecker
from edgesdk.text.tokenizer import Tokenizer
from edgesdk.tools.call_grammar import tool_call_format, with_enforceable_schemas
from edgesdk.tools.calls import ToolCall, ToolCalls
from edgesdk.tools.tool_format import ToolFormat
from edgesdk.tools.tool_set import ToolSet

_FORMAT = "response_format"
# Why the device answers alone although the server has a cloud.
_COMPLETION_REASON = "a cloud answers chats only"
_LOGPROBS_REASON = "log-probabilities are the device's own"


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request.

    Attributes:
        prepare: makes the source of the answer for a loaded model; for a worker thread.
        builder: builds the response.
        reader: splits the device's text into text and calls.
        logprobs: whether the response lists the log-probabilities of the tokens.
        may_call: whether the answer may be calls of tools.
        param: the field that holds the prompt, for error messages.
        hybrid: whether the response says who answered.
        hold: what a stream holds back while a cloud may still answer.
    """

    model: str
    prepare: Callable[[LoadedModel], AnswerSource]
    builder: Callable[[ResponseMetadata], ResponseBuilder]
    reader: Callable[[], AnswerReader]
    logprobs: bool
    may_call: bool
    stream: bool
    wants_usage: bool
    param: str
    hybrid: bool
    hold: HoldPolicy = "nothing"


class HybridChatRequest(ChatRequest):
    """The body of a chat request to a server with a cloud."""

    edgesdk: RequestRouting | None = None


def parse_chat(
    body: bytes,
    headers: Headers,
    started: float,
    *,
    settings: ServerSettings,
    hybrid: HybridClients | None,
) -> ParsedRequest:
    """Read a request to `/v1/chat/completions`.

    Args:
        started: `time.perf_counter()` when it came.

    Raises:
        ApiError, InvalidOption, RequestError: it asks for something that cannot be done.
    """
    request: ChatRequest
    routing = RequestRouting()
    if hybrid is None:
        request = parse(ChatRequest, body)
    else:
        request = parse(HybridChatRequest, body)
        routing = requested_routing(request.edgesdk, headers, hybrid.policy)
    # The probabilities are of the device's model, so nobody else can answer.
    clients = None if request.logprobs else hybrid
    output_format = _requested_format(request)
    if clients is not None:
        output_format = _for_cloud(output_format, request.response_format)
    tools = callable_tools_of(request.tools, request.tool_choice, request.parallel_tool_calls)
    if tools is not None:
        _check_tool_fields(request, tools)
    messages = template_messages(request.messages, media=clients is not None)
    options = request.options(deadline=settings.deadline)
    hold: HoldPolicy = "nothing"
    if clients is not None:
        hold = clients.hold
        # Such answers are of use only as a whole.
        whole = output_format is not None if tools is None else tools.must_call
        if not request.stream or (whole and hold == "decision"):
            hold = "answer"

    def prepare(loaded: LoadedModel) -> AnswerSource:
        runtime = loaded.model.runtime
        plain = tools is None and output_format is None
        generation_request = Request(
            messages,
            request.options(deadline=settings.deadline, sampling=runtime.sampling)
            if plain
            else options,
            runtime.encode,
            # Calls that are demanded have a format of their own.
            None if tools else output_format,
            None if tools is None else _tool_set(tools, request.tool_choice, runtime),
            started=started,
            logprobs=bool(request.logprobs),
            top_logprobs=request.top_logprobs or 0,
        )
        if clients is not None:
            redactor = Redactor(clients.policy.detectors)
            # Pieces of a cloud are shown at once, to clients that only append.
            hybrid_request = HybridRequest(
                generation_request, redactor, loaded.states, append_only=hold == "decision"
            )
            path = clients.client(request.model, loaded.model).path
            verdict = path.evaluate(hybrid_request, upload=routing.upload)
            return HybridSource(path, hybrid_request, verdict, routing.prefer)
        if (tools or uses_tools(request.messages)) and not runtime.tool_format.tools:
            raise ApiError(
                400,
                "This model's chat template knows no tools. Use a model that was trained to call"
                " them.",
                param="tools" if tools else "messages",
                code="unsupported_parameter",
            )
        reason = None if hybrid is None else _LOGPROBS_REASON
        return _device_source(loaded, generation_request, reason)

    return ParsedRequest(
        request.model,
        prepare,
        ChatResponseBuilder,
        reader=PlainTextReader if tools is None else lambda: ToolCallReader(tools),
        logprobs=bool(request.logprobs),
        may_call=tools is not None,
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
        param="messages",
        hybrid=hybrid is not None,
        hold=hold,
    )


def parse_completion(
    body: bytes,
    headers: Headers,
    started: float,
    *,
    settings: ServerSettings,
    hybrid: HybridClients | None,
) -> ParsedRequest:
    """Read a request to `/v1/completions`; arguments and errors are those of `parse_chat`.

    A completion goes on with a text. A chat's endpoint has no place for that, so no cloud is asked.
    """
    request = parse(CompletionRequest, body)
    logprobs = request.logprobs is not None

    def prepare(loaded: LoadedModel) -> AnswerSource:
        prompt = _completion_prompt(request, loaded.model.runtime)
        generation_request = Request(
            [],
            request.options(deadline=settings.deadline, sampling=loaded.model.runtime.sampling),
            lambda messages, specs: prompt,
            started=started,
            logprobs=logprobs,
            top_logprobs=request.logprobs or 0,
        )
        return _device_source(
            loaded, generation_request, None if hybrid is None else _COMPLETION_REASON
        )

    return ParsedRequest(
        request.model,
        prepare,
        CompletionResponseBuilder,
        reader=PlainTextReader,
        logprobs=logprobs,
        may_call=False,
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
        param="prompt",
        hybrid=hybrid is not None,
    )


def _device_source(loaded: LoadedModel, request: Request, reason: str | None) -> DeviceSource:
    """The source of an answer that the device gives alone.

    Raises:
        ApiError: 400; no answer has the format.
        ContextOverflow, TemplateError, InvalidText: the prompt does not fit or cannot be encoded.
    """
    check_fits(len(request.tokens), loaded.model.info.context_length)
    with _errors_at(_FORMAT if request.tools is None else "tools"):
        constraint = loaded.model.runtime.constraint_for(request.answer_format)
    return DeviceSource(loaded, request, constraint, reason)


def _completion_prompt(request: CompletionRequest, runtime: Runtime) -> list[int]:
    encoder, prompt = runtime.encoder, request.prompt
    if isinstance(prompt, str):
        return encoder.plain(prompt)
    first = prompt[0]
    if isinstance(first, str):
        return encoder.plain(first)
    ids, size = [*map(int, prompt)], encoder.tokenizer.vocab_size
    for index, token in enumerate(ids):
        if not 0 <= token < size:
            raise ApiError(
                400,
                f"The tokens of this model are from 0 to {size - 1:,}.",
                param=f"prompt.{index}",
                code="invalid_value",
            )
    return ids


def _requested_format(request: ChatRequest) -> OutputFormat | None:
    """The output format that `response_format` asks for; None for any text.

    Raises:
        ApiError: 400; it cannot be enforced, or goes with something else of the request. 501 if
            llguidance is not installed.
    """
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if request.stop:
        message = f"stop and {_FORMAT} exclude each other: it would cut the JSON short."
        raise ApiError(400, message, param="stop")
    if wanted.type == "json_object":
        with _errors_at(_FORMAT):
            return output_format_of("schema", {"type": "object"})
    param = f"{_FORMAT}.json_schema"
    if wanted.json_schema is None:
        raise missing_parameter(param)
    schema, param = wanted.json_schema.definition, f"{param}.schema"
    if schema is None:
        raise missing_parameter(param)
    if len(json.dumps(schema)) > MAX_SCHEMA_CHARACTERS:
        message = f"The schema is longer than {MAX_SCHEMA_CHARACTERS:,} characters."
        raise ApiError(400, message, param=param)
    with _errors_at(param):
        return output_format_of("schema", schema)


def _check_tool_fields(request: ChatRequest, tools: CallableTools) -> None:
    """Raise 400 where fields do not go together with tools."""
    wanted = request.response_format
    if wanted is not None and wanted.type != "text" and not tools.must_call:
        raise ApiError(
            400,
            "response_format and tools exclude each other, unless tool_choice demands a call.",
            param="response_format",
        )
    if request.stop and (tools.must_call or tools.strict):
        raise ApiError(
            400, "stop excludes calls that must be whole: it would cut them short.", param="stop"
        )


def _call_format(
    tools: CallableTools, tool_format: ToolFormat, tokenizer: Tokenizer
) -> OutputFormat | None:
    """What holds an answer to calls, or its calls to their schemas; None where nothing does.

    Raises:
        InvalidOption: a schema cannot be enforced.
        MissingExtra: llguidance is not installed.
    """
    specs = [spec for spec in tools.specs if spec["function"]["name"] in tools.checks]
    if tools.must_call:
        return tool_call_format(
            tool_format, specs, tokenizer, choice="required", parallel=tools.parallel
        )
    if not tools.strict:
        return None
    specs = [
        spec if spec["function"]["name"] in tools.strict else with_enforceable_schemas([spec])[0]
        for spec in specs
    ]
    return tool_call_format(tool_format, specs, tokenizer, choice="auto", parallel=tools.parallel)


def _for_cloud(
    output_format: OutputFormat | None, wanted: ResponseFormat | None
) -> OutputFormat | None:
    """Add to the output format what the client wrote; a cloud gets that word by word."""
    if output_format is None or wanted is None:
        return None
    schema = {"type": "object"} if wanted.json_schema is None else wanted.json_schema.definition
    assert schema is not None, "_requested_format demands one"
    response_format: dict[str, Any] | None = wanted.model_dump(exclude_none=True, by_alias=True)
    try:
        SchemaChecker(schema)
    except InvalidOption:
        # A cloud cannot be held to what cannot be checked.
        response_format = None
    return replace(output_format, response_format=response_format)


def _tool_set(tools: CallableTools, choice: Any, runtime: Runtime) -> ToolSet:
    """The tools as a request has them, for one model."""
    with _errors_at("tools"):
        call_format = _call_format(tools, runtime.tool_format, runtime.encoder.tokenizer)

    def check(calls: Iterable[ToolCall], used_ids: Collection[str]) -> ToolCalls:
        allowed = list(calls) if tools.parallel else list(calls)[:1]
        return ToolCalls(
            call if tools.can_run(call) else replace(call, problem="it does not fit the tools")
            for call in allowed
        )

    return ToolSet(tools.specs, check, call_format, choice or "auto", tools.parallel)


@contextmanager
def _errors_at(param: str) -> Iterator[None]:
    """Turn errors of output formats into errors of the request's field `param`."""
    try:
        yield
    except (InvalidOption, StructureError) as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
    except MissingExtra as error:
        raise ApiError(501, str(error), param=param, code="missing_extra") from None
