"""Decides who may use the server, before anything of a request's body is read.

A web page in a browser can send requests to this machine, too. Three things keep it out: its Host
header names another host (DNS rebinding), its Origin is not allowed, and the server takes only
`application/json`, for which a browser asks the server first.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from edgesdk.server.api_errors import ApiError
from edgesdk.server.settings import ServerSettings
from edgesdk.system.checks import is_loopback

# A health check has no key, and it shows no more than that the server runs.
_OPEN_PATHS = frozenset({"/health"})


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
                response = JSONResponse(error.body(), error.status, error.headers)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        settings = self._settings
        host = _host_name(headers.get("host", ""))
        if settings.is_loopback and not is_loopback(host):
            raise ApiError(403, "This server answers to its loopback address only.", code="host")
        origin = headers.get("origin")
        if origin is not None and origin not in settings.origins:
            raise ApiError(403, f"Pages from {origin!r} may not use this server.", code="origin")
        if settings.api_key is not None and path not in _OPEN_PATHS:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode("utf-8", "surrogateescape")
            wanted = settings.api_key.strip().encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, wanted) or scheme.lower() != "bearer":
                raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; "" where it cannot be one."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
