"""Turns a request's body into what a model is asked and into how its answer is built."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers

from edgesdk.errors import InvalidOption, MissingExtra, RejectedStructure, StructureError
from edgesdk.generation.loop import Finish, Step
from edgesdk.hybrid.privacy.policy import Policy, UploadVerdict
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.request import HybridRequest, OfferedTools, RequestedFormat
from edgesdk.model import Model
from edgesdk.runtime import Runtime
from edgesdk.server.api_errors import ApiError, missing_parameter
from edgesdk.server.api_requests import ChatRequest, CompletionRequest, ResponseFormat, parse
from edgesdk.server.argument_checks import MAX_CHARACTERS, value_check
from edgesdk.server.callable_tools import CallableTools, callable_tools_of
from edgesdk.server.chat_messages import template_messages, uses_tools
from edgesdk.server.hybrid_routing import RequestRouting, RoutingFields, requested_routing
from edgesdk.server.responses import (
    ChatResponseBuilder,
    CompletionResponseBuilder,
    Json,
    ResponseBuilder,
    ResponseMetadata,
    device_only_report,
    routing_headers,
)
from edgesdk.server.service import DeviceJob, PreparedPrompt
from edgesdk.server.settings import ServerSettings
from edgesdk.server.tool_call_reader import (
    AnswerPart,
    AnswerReader,
    PlainTextReader,
    ToolCallReader,
)
from edgesdk.structured.output_format import OutputFormat, output_format_of
from edgesdk.text.tokenizer import Tokenizer
from edgesdk.tools.call_grammar import tool_call_format, with_enforceable_schemas
from edgesdk.tools.calls import ToolCall, ToolCalls
from edgesdk.tools.tool_format import ToolFormat

FORMAT_PARAM = "response_format"


def requested_format(request: ChatRequest) -> OutputFormat | None:
    """The form that `response_format` asks for; None where the answer may be any text.

    Raises:
        ApiError: 400; it cannot be enforced, or goes with something else of the request. 501 if
            llguidance is not installed.
    """
    asked = request.response_format
    if asked is None or asked.type == "text":
        return None
    if request.stop:
        raise ApiError(
            400,
            f"stop and {FORMAT_PARAM} exclude each other: it would cut the JSON short.",
            param="stop",
        )
    if asked.type == "json_object":
        with errors_at(FORMAT_PARAM):
            return output_format_of("schema", {"type": "object"})
    param = f"{FORMAT_PARAM}.json_schema"
    if asked.json_schema is None:
        raise missing_parameter(param)
    schema, param = asked.json_schema.form, f"{param}.schema"
    if schema is None:
        raise missing_parameter(param)
    if len(json.dumps(schema)) > MAX_CHARACTERS:
        raise ApiError(
            400, f"The schema is longer than {MAX_CHARACTERS:,} characters.", param=param
        )
    with errors_at(param):
        return output_format_of("schema", schema)


@contextmanager
def errors_at(param: str) -> Iterator[None]:
    """Errors of forms as errors of the request's field `param`."""
    try:
        yield
    except (InvalidOption, StructureError) as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
    except MissingExtra as error:
        raise ApiError(501, str(error), param=param, code="missing_extra") from None


@dataclass(frozen=True)
class ChatPrompt:
    """What a model is told, and what its answer is held to.

    Attributes:
        messages: as chat templates take them.
        callable_tools: None where no tool may be called.
        form: of the answer; None for any text.
        tools_used: whether `messages` has calls, or results of calls.
    """

    messages: list[dict[str, Any]]
    callable_tools: CallableTools | None
    form: OutputFormat | None
    tools_used: bool

    def prepared(self, runtime: Runtime) -> PreparedPrompt:
        """The prompt for one model.

        Raises:
            ApiError: 400; its chat template knows no tools, or no answer has the form.
            TemplateError, InvalidText: see `PromptEncoder.chat`.
        """
        callable_tools = self.callable_tools
        if callable_tools is None and not self.tools_used:
            ids = runtime.encoder.chat(self.messages)
        elif not runtime.tool_format.tools:
            raise ApiError(
                400,
                "This model's chat template knows no tools. Use a model that was trained to call"
                " them.",
                param="tools" if callable_tools else "messages",
                code="unsupported_parameter",
            )
        else:
            ids = runtime.encode(
                self.messages, () if callable_tools is None else callable_tools.specs
            )
        if callable_tools is None:
            with errors_at(FORMAT_PARAM):
                return PreparedPrompt(ids, runtime.constraint_for(self.form)[0])
        with errors_at("tools"):
            form = call_format(callable_tools, runtime.tool_format, runtime.encoder.tokenizer)
            return PreparedPrompt(ids, runtime.constraint_for(form)[0])


def call_format(
    callable_tools: CallableTools, tool_format: ToolFormat, tokenizer: Tokenizer
) -> OutputFormat | None:
    """What holds an answer to calls, or its calls to their schemas; None where nothing does.

    Raises:
        InvalidOption: a schema cannot be enforced.
        MissingExtra: llguidance is not installed.
    """
    specs = [
        spec for spec in callable_tools.specs if spec["function"]["name"] in callable_tools.checks
    ]
    if callable_tools.must_call:
        return tool_call_format(
            tool_format, specs, tokenizer, choice="required", parallel=callable_tools.parallel
        )
    if not callable_tools.strict:
        return None
    held = [
        spec
        if spec["function"]["name"] in callable_tools.strict
        else with_enforceable_schemas([spec])[0]
        for spec in specs
    ]
    return tool_call_format(
        tool_format, held, tokenizer, choice="auto", parallel=callable_tools.parallel
    )


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request.

    Attributes:
        builder_for: how the model that answers words it.
        reader: what tells its text and its calls apart.
        param: the field that holds the prompt, for error messages.
        headers: of the response, besides those that any has.
    """

    job: DeviceJob
    builder_for: Callable[[Model], ResponseBuilder]
    reader: Callable[[], AnswerReader]
    stream: bool
    wants_usage: bool
    param: str
    headers: Mapping[str, str] = field(default_factory=dict)


def parse_chat(body: bytes, settings: ServerSettings, started: float) -> ParsedRequest:
    """Read the body of `/v1/chat/completions`; raises as `parsed_chat` does."""
    return parsed_chat(parse(ChatRequest, body), settings, started)


def parsed_chat(request: ChatRequest, settings: ServerSettings, started: float) -> ParsedRequest:
    """What a request to `/v1/chat/completions` asks of a model of this server.

    Raises:
        ApiError, InvalidOption, RequestError: it asks for something that cannot be done.
    """
    form = requested_format(request)
    callable_tools = callable_tools_of(
        request.tools, request.tool_choice, request.parallel_tool_calls
    )
    if callable_tools is not None:
        check_tool_fields(request, callable_tools)
    prompt = ChatPrompt(
        template_messages(request.messages),
        callable_tools,
        form,
        tools_used=uses_tools(request.messages),
    )
    logprobs = bool(request.logprobs)

    def builder_for(model: Model) -> ResponseBuilder:
        return ChatResponseBuilder(
            _metadata(request, model, logprobs), may_call=callable_tools is not None
        )

    job = DeviceJob(
        model=request.model,
        prepare=prompt.prepared,
        options=request.options(deadline=settings.deadline),
        started=started,
        logprobs=logprobs,
        top_logprobs=request.top_logprobs or 0,
    )
    return ParsedRequest(
        job,
        builder_for,
        reader=PlainTextReader
        if callable_tools is None
        else lambda: ToolCallReader(callable_tools),
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
        param="messages",
    )


def check_tool_fields(request: ChatRequest, callable_tools: CallableTools) -> None:
    """Raise 400 where fields do not go together with tools."""
    form = request.response_format
    if form is not None and form.type != "text" and not callable_tools.must_call:
        raise ApiError(
            400,
            "response_format and tools exclude each other, unless tool_choice demands a call.",
            param="response_format",
        )
    if request.stop and (callable_tools.must_call or callable_tools.strict):
        raise ApiError(
            400, "stop excludes calls that must be whole: it would cut them short.", param="stop"
        )


def parse_completion(body: bytes, settings: ServerSettings, started: float) -> ParsedRequest:
    """Read the body of `/v1/completions`; raises as `parsed_chat` does."""
    request = parse(CompletionRequest, body)
    logprobs = request.logprobs is not None

    def prepare(runtime: Runtime) -> PreparedPrompt:
        encoder, prompt = runtime.encoder, request.prompt
        if isinstance(prompt, str):
            return PreparedPrompt(encoder.plain(prompt))
        first = prompt[0]
        if isinstance(first, str):
            return PreparedPrompt(encoder.plain(first))
        ids, size = [*map(int, prompt)], encoder.tokenizer.vocab_size
        for index, token in enumerate(ids):
            if not 0 <= token < size:
                raise ApiError(
                    400,
                    f"The tokens of this model are from 0 to {size - 1:,}.",
                    param=f"prompt.{index}",
                    code="invalid_value",
                )
        return PreparedPrompt(ids)

    def builder_for(model: Model) -> ResponseBuilder:
        return CompletionResponseBuilder(_metadata(request, model, logprobs))

    job = DeviceJob(
        model=request.model,
        prepare=prepare,
        options=request.options(deadline=settings.deadline),
        started=started,
        logprobs=logprobs,
        top_logprobs=request.logprobs or 0,
    )
    return ParsedRequest(
        job,
        builder_for,
        reader=PlainTextReader,
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
        param="prompt",
    )


def _metadata(
    request: ChatRequest | CompletionRequest, model: Model, logprobs: bool
) -> ResponseMetadata:
    return ResponseMetadata(
        model=request.model,
        engine=model.info.name,
        tokenizer=model.runtime.encoder.tokenizer,
        logprobs=logprobs,
        usage_follows=request.wants_usage,
    )


_COMPLETION_REASON = "a cloud answers chats only"


def parse_completion_device_only(
    body: bytes, settings: ServerSettings, started: float
) -> ParsedRequest:
    """Read the body of `/v1/completions`: a text that goes on, for which a chat's endpoint has no
    place. Raises as `edgesdk.server.request_parsing.parse_completion` does."""
    return alone(parse_completion(body, settings, started), _COMPLETION_REASON)


def alone(asked: ParsedRequest, reason: str) -> ParsedRequest:
    """A request that nobody but the device answers, for `reason`."""

    def builder_for(model: Model) -> ResponseBuilder:
        return _DeviceOnlyResponseBuilder(asked.builder_for(model), reason, asked.job.started)

    return replace(asked, builder_for=builder_for, headers=routing_headers("local", reason))


class _DeviceOnlyResponseBuilder:
    """Implements `ResponseBuilder`: another one's words, and who answered."""

    def __init__(self, shape: ResponseBuilder, reason: str, started: float) -> None:
        self._shape = shape
        self._reason = reason
        self._started = started
        self.opening: Callable[[], list[Json]] = shape.opening
        self.chunks: Callable[[list[Step], AnswerPart], list[Json]] = shape.chunks

    def closing(self, finish: Finish) -> Json:
        return self._shape.closing(finish) | self._report(finish)

    def usage_chunk(self, finish: Finish) -> Json:
        return self._shape.usage_chunk(finish) | self._report(finish)

    def whole(self, steps: list[Step], parts: list[AnswerPart], finish: Finish) -> Json:
        return self._shape.whole(steps, parts, finish) | self._report(finish)

    def _report(self, finish: Finish) -> Json:
        report = device_only_report(self._reason, finish, perf_counter() - self._started)
        return {"edgesdk": report}


_LOGPROBS_REASON = "log-probabilities are the device's own"


class HybridChatRequest(ChatRequest):
    """The body of a chat request to a hybrid server."""

    edgesdk: RoutingFields | None = None


@dataclass(frozen=True)
class ParsedHybridRequest:
    """A checked request.

    Attributes:
        prepare: makes what is asked of a model and its cloud; for a worker thread.
        reader: what tells the device's text and its calls apart.
        may_call: whether the answer may be calls.
        whole: whether the answer is of use only as a whole.
    """

    model: str
    prepare: Callable[[Runtime], tuple[HybridRequest, UploadVerdict]]
    routing: RequestRouting
    reader: Callable[[], AnswerReader]
    may_call: bool
    whole: bool
    stream: bool
    wants_usage: bool


def parse_hybrid_chat(
    body: bytes, headers: Headers, settings: ServerSettings, policy: Policy, started: float
) -> ParsedHybridRequest | ParsedRequest:
    """Read a request to `/v1/chat/completions`; one that only the device can answer is an
    `ParsedRequest`.

    Args:
        started: `time.perf_counter()` when it came.

    Raises:
        ApiError, InvalidOption, RequestError: it asks for something that cannot be done.
    """
    request = parse(HybridChatRequest, body)
    routing = requested_routing(request.edgesdk, headers, policy)
    if request.logprobs:
        return alone(parsed_chat(request, settings, started), _LOGPROBS_REASON)
    structure = requested_format(request)
    callable_tools = callable_tools_of(
        request.tools, request.tool_choice, request.parallel_tool_calls
    )
    if callable_tools is not None:
        check_tool_fields(request, callable_tools)
    form = None
    # Calls that are demanded have a form of their own.
    if structure is not None and callable_tools is None:
        form = RequestedFormat(structure, *_cloud_format(request.response_format))
    messages = template_messages(request.messages, media=True)
    options = request.options(deadline=settings.deadline)
    choice = request.tool_choice or "auto"

    def prepare(runtime: Runtime) -> tuple[HybridRequest, UploadVerdict]:
        tools = None if callable_tools is None else _hybrid_tools(callable_tools, choice, runtime)
        ask = HybridRequest(
            messages,
            options,
            Redactor(policy.detectors),
            form=form,
            tools=tools,
        )
        return ask, policy.evaluate(messages, call=routing.upload, besides=ask.besides)

    return ParsedHybridRequest(
        request.model,
        prepare,
        routing,
        reader=PlainTextReader
        if callable_tools is None
        else lambda: ToolCallReader(callable_tools),
        may_call=callable_tools is not None,
        whole=form is not None or (callable_tools is not None and callable_tools.must_call),
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
    )


def _cloud_format(
    asked: ResponseFormat | None,
) -> tuple[dict[str, Any] | None, Callable[[str], Any]]:
    """What the cloud is told of a form, and how its answer is checked."""
    assert asked is not None, "there is no form without it"
    schema = {"type": "object"} if asked.json_schema is None else asked.json_schema.form
    assert schema is not None, "requested_format demands one"
    told = asked.model_dump(exclude_none=True, by_alias=True)
    try:
        fits = value_check(schema, param=FORMAT_PARAM)
    except ApiError:
        # What cannot be checked the cloud cannot be held to.
        return None, json.loads

    def read(text: str) -> Any:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise RejectedStructure("The answer is no JSON.", text=text) from None
        if not fits(value):
            raise RejectedStructure("The answer does not fit its schema.", text=text)
        return value

    return told, read


def _hybrid_tools(callable_tools: CallableTools, choice: Any, runtime: Runtime) -> OfferedTools:
    with errors_at("tools"):
        held: OutputFormat | None = call_format(
            callable_tools, runtime.tool_format, runtime.encoder.tokenizer
        )

    def check(calls: Iterable[ToolCall]) -> ToolCalls:
        found = list(calls) if callable_tools.parallel else list(calls)[:1]
        return ToolCalls(
            call
            if callable_tools.check_call(call) is not None
            else ToolCall(call.name, call.arguments, "it does not fit the tools", call.id)
            for call in found
        )

    return OfferedTools(callable_tools.specs, choice, check, held, callable_tools.parallel)
