"""How each API that the server speaks writes streams and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from edgesdk.server.api_errors import ApiError

_EVENT_STREAM = "text/event-stream; charset=utf-8"
# Anthropic's words for errors, by status.
_ANTHROPIC_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(frozen=True)
class WireFormat:
    """How one API writes.

    Attributes:
        media_type: of its streams.
        chunk: a chunk of a stream as bytes.
        ping: keeps a stream open that has nothing to say yet; empty where the API has no way.
        end: follows the last chunk.
        error_body: an error as JSON.
    """

    media_type: str
    chunk: Callable[[Mapping[str, Any]], bytes]
    ping: bytes
    end: bytes
    error_body: Callable[[ApiError], dict[str, Any]]

    def error_response(
        self, error: ApiError, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        """An error as a response; `headers` stand in place of its own."""
        own = error.headers if headers is None else headers
        return JSONResponse(self.error_body(error), error.status, own)


def wire_format_of(path: str) -> WireFormat:
    """The format of the API that a path belongs to."""
    path = path.removeprefix("/v1")
    if path.startswith("/messages"):
        return _ANTHROPIC
    if path.startswith("/responses"):
        return _RESPONSES
    return _OLLAMA if path.startswith("/api/") else _OPENAI


def _json(chunk: Mapping[str, Any]) -> str:
    return json.dumps(chunk, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _data(chunk: Mapping[str, Any]) -> bytes:
    return f"data: {_json(chunk)}\n\n".encode()


def _named_event(chunk: Mapping[str, Any]) -> bytes:
    return f"event: {chunk['type']}\n".encode() + _data(chunk)


def _line(chunk: Mapping[str, Any]) -> bytes:
    return f"{_json(chunk)}\n".encode()


def _anthropic_error(error: ApiError) -> dict[str, Any]:
    usual = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_ERRORS.get(error.status, usual)
    message = error.message
    if error.code == "context_length_exceeded":
        # Claude Code knows by these words that it has to shorten the conversation.
        message = f"prompt is too long: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}}


# A comment, which clients skip.
_COMMENT = b": ping\n\n"
_OPENAI = WireFormat(_EVENT_STREAM, _data, _COMMENT, b"data: [DONE]\n\n", ApiError.body)
_RESPONSES = WireFormat(_EVENT_STREAM, _named_event, _COMMENT, b"", ApiError.body)
_ANTHROPIC = WireFormat(
    _EVENT_STREAM, _named_event, _named_event({"type": "ping"}), b"", _anthropic_error
)
_OLLAMA = WireFormat(
    "application/x-ndjson", _line, b"", b"", lambda error: {"error": error.message}
)
