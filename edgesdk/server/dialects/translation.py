"""Endpoints whose requests are translated to chat completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias, TypeVar

from pydantic_core import to_json
from starlette.datastructures import Headers

from edgesdk.server.answer_endpoint import AnswerEndpoint
from edgesdk.server.api_requests import ChatRequest, parse
from edgesdk.server.chat_messages import template_messages
from edgesdk.server.dialects.conversation import Json
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.request_body import JsonEndpoint
from edgesdk.server.request_parsing import (
    ParsedRequest,
    parse_chat,
    parse_completion,
    reasoning_for,
)
from edgesdk.server.responses import ResponseBuilder, ResponseMetadata
from edgesdk.server.service import Service

_Result = TypeVar("_Result")
# A request as a chat completion, and what builds its response.
Translated: TypeAlias = tuple[Json, Callable[[ResponseMetadata], ResponseBuilder]]


def answer_endpoint(
    translate: Callable[[bytes], Translated],
    service: Service,
    hybrid: HybridClients | None,
    *,
    effort_is_hint: bool = True,
) -> AnswerEndpoint:
    """An endpoint whose requests take the way of chat completions; of completions, where what is
    translated has a prompt.

    Args:
        translate: reads a body; raises `ApiError` where it is wrong.
        effort_is_hint: see `parse_chat`. Agents ask any model for an effort.
    """
    settings = service.settings
    chats = partial(parse_chat, settings=settings, hybrid=hybrid, effort_is_hint=effort_is_hint)
    completes = partial(parse_completion, settings=settings, hybrid=hybrid)

    def parsed(body: bytes, headers: Headers, started: float) -> ParsedRequest:
        chat, builder = translate(body)
        request = (completes if "prompt" in chat else chats)(to_json(chat), headers, started)
        # No other API has a way to withdraw what was shown.
        hold = "decision" if request.hold == "nothing" else request.hold
        return replace(request, builder=builder, hold=hold)

    return AnswerEndpoint(service, parsed)


def counting_endpoint(
    chat_body: Callable[[bytes], Json],
    written: Callable[[int], Json],
    service: Service,
) -> JsonEndpoint:
    """An endpoint that says how many tokens the prompt of a request has."""

    async def count(body: bytes) -> Json:
        request = await service.in_thread(lambda: parse(ChatRequest, to_json(chat_body(body))))
        return await prompt_of(service, request, lambda loaded, tokens: written(len(tokens)))

    return JsonEndpoint(count, service.settings.body_limit)


async def prompt_of(
    service: Service, request: ChatRequest, work: Callable[[LoadedModel, list[int]], _Result]
) -> _Result:
    """Do something with the tokens that a chat completion would give its model.

    Raises:
        ApiError, EdgeError: there are none.
    """
    messages = template_messages(request.messages)
    specs = [tool.for_template() for tool in request.tools or ()]

    def encoded(loaded: LoadedModel) -> _Result:
        runtime = loaded.model.runtime
        tokens = runtime.encode(
            messages,
            specs,
            continues=request.continues,
            reasoning=reasoning_for(request, runtime, effort_is_hint=True),
            variables=request.chat_template_kwargs or {},
        )
        return work(loaded, tokens)

    return await service.use(request.model, encoded)
