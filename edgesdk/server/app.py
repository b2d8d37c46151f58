"""The HTTP application: its paths, who may use them, and what is counted.

A web page in a browser can send requests to this machine, too. Three things keep it out: its Host
header names another host (DNS rebinding), its Origin is neither the server's own nor allowed, and
the server takes only `application/json`, for which a browser asks the server first.
"""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgesdk.server.answer_endpoint import AnswerEndpoint
from edgesdk.server.api_errors import ApiError
from edgesdk.server.chat_page import chat_page
from edgesdk.server.dialects.routes import dialect_routes
from edgesdk.server.dialects.wire_formats import wire_format_of
from edgesdk.server.hybrid_routing import HybridClients
from edgesdk.server.metrics import Metrics
from edgesdk.server.model_source import find_model
from edgesdk.server.request_parsing import parse_chat, parse_completion
from edgesdk.server.responses import REASON_HEADER, ROUTE_HEADER, model_entry
from edgesdk.server.service import Service
from edgesdk.server.settings import ANY_ORIGIN, ServerSettings
from edgesdk.server.vector_endpoints import vector_routes
from edgesdk.system.checks import is_loopback

# Neither a health check nor a browser that opens the page has a key, and both learn no more than
# that the server runs.
_OPEN_PATHS = frozenset({"/health", "/"})
REQUEST_ID = "x-request-id"
_MAX_ID_CHARACTERS = 128


class Guard:
    """ASGI middleware that lets only allowed requests through."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(Headers(scope=scope), scope["path"])
            except ApiError as error:
                refusal = wire_format_of(scope["path"]).error_response(error)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        settings = self._settings
        host = _host_name(headers.get("host", ""))
        if settings.is_loopback and not is_loopback(host):
            raise ApiError(403, "This server answers to its loopback address only.", code="host")
        origin = headers.get("origin")
        if origin is not None and not self._allows(origin, headers):
            raise ApiError(
                403,
                f"Pages from {origin!r} may not use this server, unless it is started with"
                f" --origin {origin!r}, or with --origin '*' for any page.",
                code="origin",
            )
        if settings.api_key is not None and path not in _OPEN_PATHS:
            given = _key(headers).encode("utf-8", "surrogateescape")
            wanted = settings.api_key.strip().encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, wanted):
                raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    def _allows(self, origin: str, headers: Headers) -> bool:
        """Whether pages of an origin may use the server; its own pages always may."""
        allowed = self._settings.origins
        own = origin.partition("://")[2] == headers.get("host", "")
        return own or origin in allowed or ANY_ORIGIN in allowed


def _key(headers: Headers) -> str:
    """The key that a client sends, as OpenAI's or as Anthropic's do."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    given = key if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return given.strip()


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; "" where it cannot be one."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


_CLIENT_GONE = 499


def create_app(service: Service, hybrid: HybridClients | None = None) -> ASGIApp:
    """The ASGI application of a server; its lifespan closes `service` and `hybrid`.

    Args:
        hybrid: the clients of the clouds that may answer chat requests; None for no cloud.
    """

    async def health(request: Request) -> Response:
        queue = service.queue
        state = {
            "status": "stopping" if queue.closed else "ok",
            "running": queue.running,
            "waiting": queue.waiting,
        }
        return JSONResponse(state, 503 if queue.closed else 200)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=Metrics.content_type)

    async def models(request: Request) -> Response:
        infos = await service.in_thread(service.source.list_models)
        data = [model_entry(info, loaded=service.is_loaded(info.name)) for info in infos]
        return JSONResponse({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        info = await service.in_thread(lambda: find_model(service.source, name))
        return JSONResponse(model_entry(info, loaded=service.is_loaded(info.name)))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        evicting = asyncio.create_task(service.keep_evicting())
        try:
            yield
        finally:
            evicting.cancel()
            await service.close()
            if hybrid is not None:
                await asyncio.to_thread(hybrid.close)

    chat = partial(parse_chat, settings=service.settings, hybrid=hybrid)
    completion = partial(parse_completion, settings=service.settings, hybrid=hybrid)
    routes = [
        Route("/", chat_page),
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", AnswerEndpoint(service, chat), methods=["POST"]),
        Route("/v1/completions", AnswerEndpoint(service, completion), methods=["POST"]),
        *dialect_routes(service, hybrid),
        *vector_routes(service),
    ]
    # llama.cpp's clients leave the version out.
    routes += [
        Route(route.path.removeprefix("/v1"), route.endpoint, methods=route.methods)
        for route in routes
        if route.path.startswith("/v1/")
    ]
    known = {route.path for route in routes}
    middleware = [Middleware(_RequestCounter, metrics=service.metrics, known=known)]
    if service.settings.origins:
        # Before the guard, because a browser's preflight request carries no key.
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=service.settings.origins,
                allow_methods=["GET", "POST"],
                # Clients add headers of their own, as OpenAI's do with x-stainless-*.
                allow_headers=["*"],
                expose_headers=(REQUEST_ID, "retry-after", ROUTE_HEADER, REASON_HEADER),
                allow_private_network=True,
            )
        )
    middleware.append(Middleware(Guard, settings=service.settings))
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={ApiError: _api_error_response, HTTPException: _http_error_response},
        lifespan=lifespan,
    )


class _RequestCounter:
    """ASGI middleware that counts requests by path and status, and gives each an id, unless the
    client did."""

    def __init__(self, app: ASGIApp, metrics: Metrics, known: set[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _CLIENT_GONE
        given = Headers(scope=scope).get(REQUEST_ID, "")[:_MAX_ID_CHARACTERS]
        key = given if given.isascii() and given.isprintable() and given else uuid.uuid4().hex

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = key
            await send(message)

        try:
            await self._app(scope, receive, observed)
        finally:
            # Only paths of ours, or strangers could make the metrics grow without end.
            path = scope["path"] if scope["path"] in self._known else "other"
            self._metrics.count_request(path, status)


def _api_error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return wire_format_of(request.url.path).error_response(error)


def _http_error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages: Mapping[int, str] = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.method} is not possible at {request.url.path}.",
    }
    shown = ApiError(error.status_code, messages.get(error.status_code, error.detail))
    return wire_format_of(request.url.path).error_response(shown, error.headers or {})
