"""Errors as OpenAI's API has them: a status, and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import logging
import math
from typing import Any

from edgesdk.errors import (
    ContextOverflow,
    DeadlineExceeded,
    EdgeError,
    MissingExtra,
    RequestError,
    StructureError,
    TemplateError,
    UnknownModel,
)

_MAX_CHARACTERS = 800
_log = logging.getLogger("edgesdk.server")


class ApiError(Exception):
    """An error that a client gets instead of an answer.

    Args:
        status: of HTTP, 400 to 599.
        code: tells programs what happened; None where OpenAI has no code.
        param: the field of the request that is at fault.
        retry_after: whole seconds after which trying again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        # Much of it may be the client's own: a name, a part of a schema.
        self.message = (
            message if len(message) <= _MAX_CHARACTERS else f"{message[: _MAX_CHARACTERS - 3]}..."
        )
        super().__init__(self.message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}

    def body(self) -> dict[str, Any]:
        """The JSON that OpenAI's clients make their exceptions from."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        error = {
            "message": self.message,
            "type": kind if self.status < 500 else "server_error",
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def unknown_model(name: str) -> ApiError:
    """The error where no model has that name."""
    return ApiError(
        404, f"The model {name!r} does not exist.", code="model_not_found", param="model"
    )


def missing_parameter(param: str) -> ApiError:
    """The error where a request lacks a field."""
    message = f"The parameter {param!r} is missing."
    return ApiError(400, message, param=param, code="missing_required_parameter")


def queue_full(seconds: float) -> ApiError:
    """The error where the queue is full; `seconds` later there may be room."""
    wait = max(1, math.ceil(seconds))
    return ApiError(429, "Too many requests are waiting.", code="queue_full", retry_after=wait)


def shutting_down() -> ApiError:
    """The error while the server shuts down."""
    return ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)


def deadline_passed() -> ApiError:
    """The error where the deadline passed before the first token."""
    message = "The server's deadline for a request passed before the first token."
    return ApiError(503, message, code="deadline_exceeded", retry_after=5)


def model_not_loaded(name: str, error: EdgeError) -> ApiError:
    """The error where a model exists but cannot be loaded."""
    message = f"The model {name!r} cannot be loaded: {error}"
    return ApiError(503, message, code="model_not_loaded", param="model", retry_after=10)


def to_api_error(error: EdgeError, *, param: str) -> ApiError:
    """Turn an error of edgesdk's into one of the API.

    Args:
        param: the field of the request that holds the prompt.
    """
    if isinstance(error, UnknownModel):
        return ApiError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, ContextOverflow):
        # The words that LiteLLM, LangChain and CrewAI look for, and llama-server's clients.
        message = (
            f"This model's maximum context length is {error.limit + 1:,} tokens; the request"
            f" exceeds the available context size. {error}"
        )
        return ApiError(400, message, code="context_length_exceeded", param=param)
    if isinstance(error, RequestError | TemplateError):
        return ApiError(400, str(error))
    if isinstance(error, StructureError):
        return ApiError(400, str(error), code="structure_failed")
    if isinstance(error, MissingExtra):
        return ApiError(501, str(error), code="missing_extra")
    if isinstance(error, DeadlineExceeded):
        return deadline_passed()
    return ApiError(500, str(error))


def api_error(error: Exception, param: str) -> ApiError:
    """What a client is told of an error; `param` is as for `to_api_error`."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EdgeError):
        return to_api_error(error, param=param)
    _log.error("An answer failed", exc_info=error)
    return ApiError(500, "The server failed; its log says more.", code="internal_error")
