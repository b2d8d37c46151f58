"""The paths of the other APIs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.routing import Route

from edgesdk.server.answer_endpoint import AnswerEndpoint
from edgesdk.server.api_requests import ChatRequest, parse, validated
from edgesdk.server.chat_messages import template_messages
from edgesdk.server.dialects import anthropic_requests
from edgesdk.server.dialects.anthropic_answers import AnthropicAnswer
from edgesdk.server.dialects.conversation import Json
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.request_body import JsonEndpoint
from edgesdk.server.request_parsing import ParsedRequest, parse_chat
from edgesdk.server.responses import ResponseBuilder, ResponseMetadata
from edgesdk.server.service import Service

# Reads a body of another API: as a chat completion, and what builds its response.
Translate = Callable[[bytes], tuple[Json, Callable[[ResponseMetadata], ResponseBuilder]]]


def dialect_routes(service: Service, hybrid: HybridClients | None) -> list[Route]:
    """The paths of the other APIs."""

    def answering(path: str, translate: Translate) -> Route:
        parse = partial(_parsed, translate=translate, service=service, hybrid=hybrid)
        return Route(path, AnswerEndpoint(service, parse), methods=["POST"])

    async def count(body: bytes) -> Json:
        request = validated(anthropic_requests.AnthropicRequest, body)
        return {
            "input_tokens": len(await prompt_of(service, anthropic_requests.chat_body(request)))
        }

    counting = JsonEndpoint(count, service.settings.body_limit)
    return [
        answering("/v1/messages", _anthropic),
        Route("/v1/messages/count_tokens", counting, methods=["POST"]),
    ]


def _anthropic(body: bytes) -> tuple[Json, Callable[[ResponseMetadata], ResponseBuilder]]:
    request = validated(anthropic_requests.AnthropicRequest, body)
    return anthropic_requests.chat_body(request), AnthropicAnswer


def _parsed(
    body: bytes,
    headers: Headers,
    started: float,
    *,
    translate: Translate,
    service: Service,
    hybrid: HybridClients | None,
) -> ParsedRequest:
    chat, builder = translate(body)
    parsed = parse_chat(to_json(chat), headers, started, settings=service.settings, hybrid=hybrid)
    # No other API has a way to withdraw what was shown.
    hold = "decision" if parsed.hold == "nothing" else parsed.hold
    return replace(parsed, builder=builder, hold=hold)


async def prompt_of(service: Service, chat: Json) -> list[int]:
    """The tokens that a chat completion would give its model.

    Raises:
        ApiError, EdgeError: it has none.
    """
    request = parse(ChatRequest, to_json(chat))
    messages = template_messages(request.messages)
    specs = [tool.for_template() for tool in request.tools or ()]

    def encode(loaded: LoadedModel) -> list[int]:
        return loaded.model.runtime.encode(messages, specs, continues=request.continues)

    return await service.use(request.model, encode)
