"""Sends a response: as a whole, or as a stream of chunks that is never silent long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgesdk.server.api_errors import ApiError
from edgesdk.server.dialects.wire_formats import wire_format_of

# Clients and proxies give up on a connection that is silent for 30 or 60 seconds, and a long prompt
# can take that long.
_PING_SECONDS = 10.0
_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class EventStream:
    """The response to one request. All of it is for one event loop.

    Before `start` an error has a status; later it is the stream's last chunk.

    Attributes:
        error_chunk: writes that one.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._format = wire_format_of(scope["path"])
        self.error_chunk = self._format.error_body
        self._send = send
        self._may_ping = False
        self._has_started = False
        self._sent = monotonic()

    async def start(self, headers: Mapping[str, str] | None = None) -> None:
        """Send the headers, unless a ping did; further ones are in Latin-1."""
        if self._has_started:
            return
        self._has_started = True
        extra = [(k.encode(), v.encode("latin-1")) for k, v in (headers or {}).items()]
        headed = [(b"content-type", self._format.media_type.encode()), *_HEADERS, *extra]
        start = {"type": "http.response.start", "status": 200, "headers": headed}
        await self._send(start)

    async def send(self, chunk: Mapping[str, Any]) -> None:
        """Send one chunk."""
        await self.start()
        await self._send_bytes(self._format.chunk(chunk))

    async def send_all(self, chunks: AsyncIterator[Mapping[str, Any]]) -> None:
        """Send chunks as they come."""
        async for chunk in chunks:
            await self.send(chunk)
            # Neither sending nor a chunk that is there already gives way to the loop by itself,
            # and it is the loop that notices a client's leaving.
            await asyncio.sleep(0)

    async def send_end(self) -> None:
        """Send the mark of a whole stream, and end it."""
        if self._format.end:
            await self._send_bytes(self._format.end)
        await self._end()

    async def send_response(self, response: Response, receive: Receive) -> None:
        """Send a response as a whole."""
        self._may_ping = False
        await response(self._scope, receive, self._send)

    async def send_error(self, error: ApiError, receive: Receive) -> None:
        """Send an error, as a status or as the last chunk."""
        if not self._has_started:
            await self.send_response(self._format.error_response(error), receive)
            return
        await self.send(self.error_chunk(error))
        await self._end()

    def allow_pings(self) -> None:
        """From now on the stream must not be silent."""
        self._may_ping = bool(self._format.ping)

    async def keep_alive(self) -> None:
        """Send a ping whenever the stream was silent for long; for a task of its own."""
        while True:
            await anyio.sleep(_PING_SECONDS / 4)
            if self._may_ping and monotonic() - self._sent >= _PING_SECONDS:
                await self.start()
                await self._send_bytes(self._format.ping)

    async def _send_bytes(self, written: bytes) -> None:
        self._sent = monotonic()
        await self._send({"type": "http.response.body", "body": written, "more_body": True})

    async def _end(self) -> None:
        self._may_ping = False
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
