"""From a request's body to a job for the service, and to how its answer is worded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgesdk.model import Model
from edgesdk.runtime import Runtime
from edgesdk.server.calling import CallReader, Reader, TextReader
from edgesdk.server.failures import ApiError
from edgesdk.server.messages import conversation, uses_tools
from edgesdk.server.prompting import ChatPrompt
from edgesdk.server.requests import ChatRequest, CompletionRequest, parse
from edgesdk.server.service import Job, Prepared
from edgesdk.server.settings import ServerSettings
from edgesdk.server.shapes import ChatShape, CompletionShape, Shape, Stamp
from edgesdk.server.structure import format_asked
from edgesdk.server.tooling import Toolset, toolset_of


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        shape_for: how the model that answers words it.
        reader: what tells its text and its calls apart.
        param: the field that holds the prompt, for error messages.
        headers: of the response, besides those that any has.
    """

    job: Job
    shape_for: Callable[[Model], Shape]
    reader: Callable[[], Reader]
    stream: bool
    wants_usage: bool
    param: str
    headers: Mapping[str, str] = field(default_factory=dict)


def ask_chat(body: bytes, settings: ServerSettings, started: float) -> Asked:
    """Read the body of `/v1/chat/completions`; raises as `chat_asked` does."""
    return chat_asked(parse(ChatRequest, body), settings, started)


def chat_asked(request: ChatRequest, settings: ServerSettings, started: float) -> Asked:
    """What a request to `/v1/chat/completions` asks of a model of this server.

    Raises:
        ApiError, InvalidOption, RequestError: it asks for something that cannot be done.
    """
    form = format_asked(request)
    toolset = toolset_of(request.tools, request.tool_choice, request.parallel_tool_calls)
    if toolset is not None:
        check_together(request, toolset)
    prompt = ChatPrompt(
        conversation(request.messages), toolset, form, tools_used=uses_tools(request.messages)
    )
    logprobs = bool(request.logprobs)

    def shape_for(model: Model) -> Shape:
        return ChatShape(_stamp(request, model, logprobs), may_call=toolset is not None)

    job = Job(
        model=request.model,
        prepare=prompt.prepared,
        options=request.options(deadline=settings.deadline),
        started=started,
        logprobs=logprobs,
        top_logprobs=request.top_logprobs or 0,
    )
    return Asked(
        job,
        shape_for,
        reader=TextReader if toolset is None else lambda: CallReader(toolset),
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
        param="messages",
    )


def check_together(request: ChatRequest, toolset: Toolset) -> None:
    """Raise 400 where fields do not go together with tools."""
    form = request.response_format
    if form is not None and form.type != "text" and not toolset.must_call:
        raise ApiError(
            400,
            "response_format and tools exclude each other, unless tool_choice demands a call.",
            param="response_format",
        )
    if request.stop and (toolset.must_call or toolset.strict):
        raise ApiError(
            400, "stop excludes calls that must be whole: it would cut them short.", param="stop"
        )


def ask_completion(body: bytes, settings: ServerSettings, started: float) -> Asked:
    """Read the body of `/v1/completions`; raises as `chat_asked` does."""
    request = parse(CompletionRequest, body)
    logprobs = request.logprobs is not None

    def prepare(runtime: Runtime) -> Prepared:
        encoder, prompt = runtime.encoder, request.prompt
        if isinstance(prompt, str):
            return Prepared(encoder.plain(prompt))
        first = prompt[0]
        if isinstance(first, str):
            return Prepared(encoder.plain(first))
        ids, size = [*map(int, prompt)], encoder.tokenizer.vocab_size
        for index, token in enumerate(ids):
            if not 0 <= token < size:
                raise ApiError(
                    400,
                    f"The tokens of this model are from 0 to {size - 1:,}.",
                    param=f"prompt.{index}",
                    code="invalid_value",
                )
        return Prepared(ids)

    def shape_for(model: Model) -> Shape:
        return CompletionShape(_stamp(request, model, logprobs))

    job = Job(
        model=request.model,
        prepare=prepare,
        options=request.options(deadline=settings.deadline),
        started=started,
        logprobs=logprobs,
        top_logprobs=request.logprobs or 0,
    )
    return Asked(
        job,
        shape_for,
        reader=TextReader,
        stream=bool(request.stream),
        wants_usage=request.wants_usage,
        param="prompt",
    )


def _stamp(request: ChatRequest | CompletionRequest, model: Model, logprobs: bool) -> Stamp:
    return Stamp(
        model=request.model,
        engine=model.info.name,
        tokenizer=model.runtime.encoder.tokenizer,
        logprobs=logprobs,
        usage_follows=request.wants_usage,
    )
