"""Turns a request's body into a `Request` for a model, and into the builder of its response."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from starlette.datastructures import Headers

from edgesdk.errors import InvalidOption
from edgesdk.generation.prefill import check_fits
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.request import HybridRequest
from edgesdk.options import Reasoning
from edgesdk.request import Request
from edgesdk.runtime import Runtime
from edgesdk.server.answers import AnswerSource, DeviceSource, HybridSource
from edgesdk.server.api_errors import ApiError
from edgesdk.server.api_requests import (
    BaseRequest,
    ChatRequest,
    CompletionRequest,
    keep_alive_seconds,
    parse,
)
from edgesdk.server.callable_tools import (
    AnswerReader,
    PlainTextReader,
    ToolCallReader,
    callable_tools_of,
)
from edgesdk.server.chat_messages import template_messages
from edgesdk.server.hybrid_routing import (
    HoldPolicy,
    HybridClients,
    RequestRouting,
    requested_routing,
)
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.request_formats import errors_at, for_cloud, requested_format, tool_set_of
from edgesdk.server.responses import (
    ChatResponseBuilder,
    CompletionResponseBuilder,
    ResponseBuilder,
    ResponseMetadata,
)
from edgesdk.server.settings import ServerSettings

# Why the device answers alone although the server has a cloud.
_COMPLETION_REASON = "a cloud answers chats only"


@dataclass(frozen=True)
class ParsedRequest:
    """A checked request.

    Attributes:
        prepare: makes the source of the answer for a loaded model; for a worker thread.
        builder: builds the response.
        reader: splits the text of the device's model into text and calls.
        logprobs: whether the response lists the log-probabilities of the tokens.
        may_call: whether the answer may be calls of tools.
        param: the field that holds the prompt, for error messages.
        hybrid: whether the response says who answered.
        hold: what a stream holds back while a cloud may still answer.
        others: as `prepare`, for further answers of the same request.
        per_prompt: how many of the answers are to one prompt.
        key: is in the id of each of its answers.
        keep_alive: seconds that the model stays loaded afterwards; None for the server's own.
    """

    model: str
    prepare: Callable[[LoadedModel], AnswerSource]
    builder: Callable[[ResponseMetadata], ResponseBuilder]
    reader: Callable[[LoadedModel], AnswerReader]
    logprobs: bool
    may_call: bool
    stream: bool
    wants_usage: bool
    param: str
    hybrid: bool
    hold: HoldPolicy = "nothing"
    others: tuple[Callable[[LoadedModel], AnswerSource], ...] = ()
    per_prompt: int = 1
    keep_alive: float | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


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
    effort_is_hint: bool = False,
) -> ParsedRequest:
    """Read a request to `/v1/chat/completions`.

    Args:
        started: `time.perf_counter()` when it came.
        effort_is_hint: a model that cannot make the effort goes without it, in place of refusing.

    Raises:
        ApiError, InvalidOption, RequestError: it asks for something that cannot be done.
    """
    chat = partial(chat_request, started=started, settings=settings, effort_is_hint=effort_is_hint)
    if hybrid is None:
        return chat(parse(ChatRequest, body))
    request = parse(HybridChatRequest, body)
    routing = requested_routing(request.edgesdk, headers, hybrid.policy)
    return chat(request, hybrid=hybrid, routing=routing)


def chat_request(
    request: ChatRequest,
    started: float,
    *,
    settings: ServerSettings,
    hybrid: HybridClients | None = None,
    routing: RequestRouting | None = None,
    effort_is_hint: bool = False,
) -> ParsedRequest:
    """What a chat request asks for, whichever API it came by; see `parse_chat`."""
    routing = routing or RequestRouting()
    reason = None if hybrid is None else _device_reason(request)
    clients = hybrid if reason is None else None
    output_format = requested_format(request)
    if clients is not None:
        output_format = for_cloud(output_format, request.response_format)
    tools = callable_tools_of(request.tools, request.tool_choice, request.parallel_tool_calls)
    messages = template_messages(request.messages, media=clients is not None)
    hold: HoldPolicy = "nothing"
    if clients is not None:
        hold = clients.hold
        # Such answers are of use only as a whole.
        whole = output_format is not None or (tools is not None and tools.must_call)
        if not request.stream or (whole and hold == "decision"):
            hold = "answer"

    def prepare(loaded: LoadedModel, index: int = 0) -> AnswerSource:
        runtime = loaded.model.runtime
        _check_context(request, loaded)
        plain = tools is None and output_format is None
        options = request.options(
            deadline=settings.deadline, sampling=runtime.sampling if plain else None, index=index
        )
        reasoning = reasoning_for(request, runtime, effort_is_hint=effort_is_hint)
        options = replace(
            options, reasoning=reasoning, max_reasoning_tokens=request.max_reasoning_tokens
        )
        if output_format is not None and tools is None:
            # An answer with a format ends where its format does; a stop text would cut it short.
            options = replace(options, stop=())
        tool_set = None
        if tools is not None:
            tool_set = tool_set_of(tools, request.tool_choice, runtime, output_format)
        generation_request = Request(
            messages,
            options,
            partial(
                runtime.encode,
                continues=request.continues,
                reasoning=reasoning,
                variables=request.chat_template_kwargs or {},
            ),
            # What holds the answer to calls, or to the format, is one.
            output_format if tool_set is None or clients is not None else None,
            tool_set,
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
            path = clients.client(loaded.model_info.name, loaded.model).path
            verdict = path.evaluate(hybrid_request, upload=routing.upload)
            return HybridSource(path, hybrid_request, verdict, routing.prefer)
        return _device_source(loaded, generation_request, reason)

    def reader(loaded: LoadedModel) -> AnswerReader:
        if tools is None:
            return PlainTextReader()
        syntax = loaded.model.runtime.tool_format.syntax
        return ToolCallReader(tools, syntax, answered=output_format is not None)

    return ParsedRequest(
        request.model,
        prepare,
        ChatResponseBuilder,
        reader=reader,
        logprobs=bool(request.logprobs),
        may_call=tools is not None,
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
        param="messages",
        hybrid=hybrid is not None,
        hold=hold,
        others=tuple(partial(prepare, index=index) for index in range(1, request.n or 1)),
        per_prompt=request.n or 1,
        keep_alive=keep_alive_seconds(request),
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
    output_format = requested_format(request)
    logprobs = request.logprobs is not None

    def prepare(place: int, index: int, loaded: LoadedModel) -> AnswerSource:
        runtime = loaded.model.runtime
        _check_context(request, loaded)
        prompts = request.prompts
        param = "prompt" if prompts == [request.prompt] else f"prompt.{place}"
        ids = _completion_prompt(prompts[place], runtime, param)
        sampling = runtime.sampling if output_format is None else None
        options = request.options(deadline=settings.deadline, sampling=sampling, index=index)
        generation_request = Request(
            [],
            options if output_format is None else replace(options, stop=()),
            lambda messages, specs: ids,
            output_format,
            started=started,
            logprobs=logprobs,
            top_logprobs=request.logprobs or 0,
        )
        source = _device_source(
            loaded, generation_request, None if hybrid is None else _COMPLETION_REASON
        )
        return replace(source, echo=bool(request.echo), answers=request.max_tokens != 0)

    first, *others = (
        partial(prepare, place, index)
        for place in range(len(request.prompts))
        for index in range(request.n or 1)
    )
    return ParsedRequest(
        request.model,
        first,
        CompletionResponseBuilder,
        reader=lambda loaded: PlainTextReader(),
        logprobs=logprobs,
        may_call=False,
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
        param="prompt",
        hybrid=hybrid is not None,
        others=tuple(others),
        per_prompt=request.n or 1,
        keep_alive=keep_alive_seconds(request),
    )


def _device_reason(request: ChatRequest) -> str | None:
    """Why only the device's own model can answer; None where a cloud can too."""
    if request.logprobs:
        return "log-probabilities are the device's own"
    several = request.n not in (None, 1)
    ends = request.min_tokens or request.ignore_eos or request.stop_token_ids
    if request.continues or several or ends:
        return "it asks for what only the device's own model can do"
    return None


def reasoning_for(request: ChatRequest, runtime: Runtime, *, effort_is_hint: bool) -> Reasoning:
    """How the model is to reason.

    Raises:
        ApiError: 400; it cannot, and the effort is no hint.
    """
    try:
        runtime.encoder.reasoning_for(request.tools).variables(request.reasoning)
    except InvalidOption as error:
        if effort_is_hint:
            return "auto"
        raise ApiError(
            400, error.message, param="reasoning_effort", code="unsupported_parameter"
        ) from None
    return request.reasoning


def _check_context(request: BaseRequest, loaded: LoadedModel) -> None:
    """Raise 400 where a request wants a longer context than the model was loaded with."""
    length = loaded.model.info.context_length
    if request.num_ctx is not None and request.num_ctx > length:
        raise ApiError(
            400,
            f"The model is loaded with a context of {length:,} tokens; the server's --context sets"
            " that, as far as the model goes.",
            param="num_ctx",
            code="invalid_value",
        )


def _device_source(loaded: LoadedModel, request: Request, reason: str | None) -> DeviceSource:
    """The source of an answer that the device gives alone.

    Raises:
        ApiError: 400; no answer has the format.
        ContextOverflow, TemplateError, InvalidText: the prompt does not fit or cannot be encoded.
    """
    check_fits(len(request.tokens), loaded.model.info.context_length)
    with errors_at("response_format" if request.tools is None else "tools"):
        constraint = loaded.model.runtime.constraint_for(request.answer_format)
    return DeviceSource(loaded, request, constraint, reason)


def _completion_prompt(prompt: str | list[int], runtime: Runtime, param: str) -> list[int]:
    encoder = runtime.encoder
    if isinstance(prompt, str):
        return encoder.plain(prompt)
    size = encoder.tokenizer.vocab_size
    for index, token in enumerate(prompt):
        if not 0 <= token < size:
            raise ApiError(
                400,
                f"The tokens of this model are from 0 to {size - 1:,}.",
                param=f"{param}.{index}",
                code="invalid_value",
            )
    return prompt
