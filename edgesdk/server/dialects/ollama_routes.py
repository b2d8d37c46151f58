"""The paths of Ollama's API."""

from __future__ import annotations

from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgesdk.server.api_errors import api_error
from edgesdk.server.api_requests import seconds_of, validated
from edgesdk.server.chat_messages import MessageModel
from edgesdk.server.dialects.conversation import Json
from edgesdk.server.dialects.ollama_answers import OllamaAnswer, as_time, now
from edgesdk.server.dialects.ollama_requests import OllamaChatRequest, OllamaGenerateRequest
from edgesdk.server.dialects.translation import Translated, answer_endpoint
from edgesdk.server.dialects.wire_formats import wire_format_of
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.model_source import ModelInfo, find_model
from edgesdk.server.request_body import JsonEndpoint, read_body
from edgesdk.server.service import Service

# Clients look at this for what they may ask. It is the version whose API is spoken here.
_OLLAMA_VERSION = "0.13.0"
# What chats is nothing more than a completion to Ollama.
_NOT_TOLD = frozenset({"chat"})


class OllamaShowRequest(MessageModel):
    """The body of `/api/show`; `name` is an older name of `model`."""

    model: str = ""
    name: str = ""


class LoadOrAnswer:
    """ASGI application of a path that answers; where nothing is asked, it only loads the model.

    Args:
        kind: of the bodies.
        answer: the application that answers.
    """

    def __init__(
        self,
        service: Service,
        kind: type[OllamaChatRequest] | type[OllamaGenerateRequest],
        answer: ASGIApp,
    ) -> None:
        self._service = service
        self._kind = kind
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(scope, receive, self._service.settings.body_limit)
            request = validated(self._kind, body)
            response = JSONResponse(await self._loaded(request)) if request.loads else None
        except ClientDisconnect:
            return
        except Exception as error:
            shown = api_error(error, "prompt")
            response = wire_format_of(scope["path"]).error_response(shown)
        if response is None:
            await self._answer(scope, _replayed(body, receive), send)
        else:
            await response(scope, receive, send)

    async def _loaded(self, request: OllamaChatRequest | OllamaGenerateRequest) -> Json:
        keep_alive = None if request.keep_alive is None else seconds_of(request.keep_alive)
        unloads = keep_alive == 0
        if not unloads or self._service.is_loaded(request.model):
            await self._service.use(request.model, lambda loaded: None, keep_alive=keep_alive)
        said: Json = {"response": ""}
        if self._kind is OllamaChatRequest:
            said = {"message": {"role": "assistant", "content": ""}}
        reason = "unload" if unloads else "load"
        return {
            "model": request.model,
            "created_at": now(),
            **said,
            "done": True,
            "done_reason": reason,
        }


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, and then what comes after it."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay


def ollama_routes(service: Service, hybrid: HybridClients | None) -> list[Route]:
    """The paths of one server."""

    def said(path: str, kind: type[OllamaChatRequest] | type[OllamaGenerateRequest]) -> Route:
        def translate(body: bytes) -> Translated:
            builder = partial(OllamaAnswer, chats=kind is OllamaChatRequest)
            return validated(kind, body).chat_body(), builder

        answer = answer_endpoint(translate, service, hybrid, effort_is_hint=False)
        return Route(path, LoadOrAnswer(service, kind, answer), methods=["POST"])

    async def tags(request: Request) -> Response:
        infos = await service.in_thread(service.source.list_models)
        return JSONResponse({"models": [_listed(info) for info in infos]})

    async def running(request: Request) -> Response:
        models = [
            {**_listed(each.model_info), "size": each.memory, "size_vram": 0}
            | {"context_length": each.content.info.context_length}
            for each in service.loaded_models()
        ]
        return JSONResponse({"models": models})

    async def show(body: bytes) -> Json:
        asked = validated(OllamaShowRequest, body)
        name = asked.model or asked.name
        return _shown(await service.in_thread(lambda: find_model(service.source, name)))

    async def version(request: Request) -> Response:
        return JSONResponse({"version": _OLLAMA_VERSION})

    limit = service.settings.body_limit
    return [
        said("/api/chat", OllamaChatRequest),
        said("/api/generate", OllamaGenerateRequest),
        Route("/api/tags", tags),
        Route("/api/ps", running),
        Route("/api/show", JsonEndpoint(show, limit), methods=["POST"]),
        Route("/api/version", version),
    ]


def _listed(info: ModelInfo) -> Json:
    """A model in Ollama's lists. What nobody knows without loading it is empty."""
    return {
        "name": info.name,
        "model": info.name,
        "modified_at": as_time(info.created),
        "size": info.size,
        "digest": "",
        "details": _DETAILS,
    }


def _shown(info: ModelInfo) -> Json:
    """What `/api/show` says of a model."""
    facts: Json = {"general.architecture": "edgesdk", "general.basename": info.name}
    if info.context_length is not None:
        facts["edgesdk.context_length"] = info.context_length
    return {
        "modified_at": as_time(info.created),
        "details": _DETAILS,
        "model_info": facts,
        "capabilities": [each for each in info.capabilities if each not in _NOT_TOLD],
        "parameters": "",
        "template": "",
        "license": "",
        "modelfile": "",
    }


_DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}
