"""The parts of a chat request that bind the answer's form: `response_format` and `tools`.

This is the one place where they are looked at.
"""

from __future__ import annotations

from edgesdk.server.failures import ApiError
from edgesdk.server.requests import ChatRequest


def check_plain(request: ChatRequest) -> None:
    """Raise 400 unless the answer may be any text."""
    form = request.response_format
    if form is not None and form.get("type") != "text":
        raise _unsupported("response_format")
    if request.tools and request.tool_choice != "none":
        raise _unsupported("tools")
    for index, message in enumerate(request.messages):
        if message.role == "tool" or message.tool_calls:
            raise _unsupported(f"messages.{index}")


def _unsupported(param: str) -> ApiError:
    return ApiError(
        400,
        f"{param!r}: this server answers with plain text only.",
        param=param,
        code="unsupported_parameter",
    )
