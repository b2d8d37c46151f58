"""From a request's body to a job for the service, and to how its answer is worded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgesdk.model import Model
from edgesdk.server.requests import ChatRequest, CompletionRequest, parse
from edgesdk.server.service import Job
from edgesdk.server.settings import ServerSettings
from edgesdk.server.shapes import ChatShape, CompletionShape, Shape, Stamp
from edgesdk.server.structure import check_plain
from edgesdk.text.prompts import PromptEncoder, messages_of


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        shape_for: how the model that answers words it.
        param: the field that holds the prompt, for error messages.
    """

    job: Job
    shape_for: Callable[[Model], Shape]
    stream: bool
    wants_usage: bool
    param: str


def ask_chat(body: bytes, settings: ServerSettings, started: float) -> Asked:
    """Read the body of `/v1/chat/completions`.

    Raises:
        ApiError, InvalidOption, RequestError: it asks for something that cannot be done.
    """
    request = parse(ChatRequest, body)
    check_plain(request)
    messages = messages_of([message.plain() for message in request.messages])
    logprobs = bool(request.logprobs)

    def shape_for(model: Model) -> Shape:
        return ChatShape(_stamp(request, model, logprobs))

    job = Job(
        model=request.model,
        encode=lambda encoder: encoder.chat(messages),
        options=request.options(deadline=settings.deadline),
        started=started,
        logprobs=logprobs,
        top_logprobs=request.top_logprobs or 0,
    )
    return Asked(job, shape_for, bool(request.stream), request.wants_usage, "messages")


def ask_completion(body: bytes, settings: ServerSettings, started: float) -> Asked:
    """Read the body of `/v1/completions`; raises as `ask_chat` does."""
    request = parse(CompletionRequest, body)
    logprobs = request.logprobs is not None

    def encode(encoder: PromptEncoder) -> list[int]:
        prompt = request.prompt
        if isinstance(prompt, str):
            return encoder.plain(prompt)
        first = prompt[0]
        return encoder.plain(first) if isinstance(first, str) else [*map(int, prompt)]

    def shape_for(model: Model) -> Shape:
        return CompletionShape(_stamp(request, model, logprobs))

    job = Job(
        model=request.model,
        encode=encode,
        options=request.options(deadline=settings.deadline),
        started=started,
        logprobs=logprobs,
        top_logprobs=request.logprobs or 0,
    )
    return Asked(job, shape_for, bool(request.stream), request.wants_usage, "prompt")


def _stamp(request: ChatRequest | CompletionRequest, model: Model, logprobs: bool) -> Stamp:
    return Stamp(
        model=request.model,
        engine=model.info.name,
        tokenizer=model.runtime.encoder.tokenizer,
        logprobs=logprobs,
        usage_follows=request.wants_usage,
    )
