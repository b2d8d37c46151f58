"""Reads the body of a request, and answers those that need no turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edgesdk.server.api_errors import ApiError, api_error
from edgesdk.server.dialects.wire_formats import wire_format_of

_MAX_BODY_SECONDS = 30.0
# A client hears of a refusal only after it has sent its body, so that much of one is read.
_DRAIN_FACTOR = 16


class JsonEndpoint:
    """ASGI application of a path that answers at once, with JSON to JSON.

    Args:
        answer: makes the response's body of the request's.
        limit: most bytes of a request.
    """

    def __init__(self, answer: Callable[[bytes], Awaitable[Any]], limit: int) -> None:
        self._answer = answer
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response
        try:
            body = await read_body(scope, receive, self._limit)
            response = JSONResponse(await self._answer(body))
        except ClientDisconnect:
            return
        except Exception as error:
            shown = api_error(error, "prompt")
            response = wire_format_of(scope["path"]).error_response(shown)
        await response(scope, receive, send)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The body of a JSON request.

    Raises:
        ApiError: it is not declared as JSON (415), too large (413), or too slow to come (408).
        ClientDisconnect: the client went away.
    """
    declared = Headers(scope=scope).get("content-type", "")
    body = bytearray()
    size = 0
    with anyio.move_on_after(_MAX_BODY_SECONDS) as timeout:
        async for part in Request(scope, receive).stream():
            size += len(part)
            if size <= limit:
                body += part
            elif size > _DRAIN_FACTOR * limit:
                break
    if timeout.cancelled_caught:
        raise ApiError(408, "The request's body did not come in time.", code="body_too_slow")
    if size > limit:
        raise ApiError(413, f"The body is larger than {limit:,} bytes.", code="body_too_large")
    if declared.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415, "The Content-Type must be application/json.", code="unsupported_media_type"
        )
    return bytes(body)
