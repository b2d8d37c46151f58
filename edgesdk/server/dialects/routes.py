"""The paths of the other APIs."""

from __future__ import annotations

from functools import partial

from starlette.routing import Route

from edgesdk.server.api_requests import validated
from edgesdk.server.dialects.anthropic_answers import AnthropicAnswer
from edgesdk.server.dialects.anthropic_requests import AnthropicRequest, chat_body
from edgesdk.server.dialects.conversation import Json
from edgesdk.server.dialects.ollama_routes import ollama_routes
from edgesdk.server.dialects.responses_routes import responses_routes
from edgesdk.server.dialects.tokenizing_routes import tokenizing_routes
from edgesdk.server.dialects.translation import Translated, answer_endpoint, counting_endpoint
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.service import Service


def dialect_routes(service: Service, hybrid: HybridClients | None) -> list[Route]:
    """The paths of the other APIs."""

    def anthropic(body: bytes) -> Json:
        return chat_body(validated(AnthropicRequest, body))

    def translated(body: bytes) -> Translated:
        return anthropic(body), AnthropicAnswer

    def counted(tokens: int) -> Json:
        return {"input_tokens": tokens}

    post = partial(Route, methods=["POST"])
    return [
        post("/v1/messages", answer_endpoint(translated, service, hybrid)),
        post("/v1/messages/count_tokens", counting_endpoint(anthropic, counted, service)),
        *responses_routes(service, hybrid),
        *ollama_routes(service, hybrid),
        *tokenizing_routes(service),
    ]
