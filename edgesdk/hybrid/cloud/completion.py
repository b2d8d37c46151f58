"""Sends one text completion to one endpoint, and reads its reply as one JSON."""

from __future__ import annotations

from typing import Any

import httpx

from edgesdk.errors import EdgeError
from edgesdk.hybrid.cloud.attempt import (
    AttemptTimer,
    Patience,
    SendProgress,
    broken_off,
    failure_reason,
    open_response,
    read_error_body,
)
from edgesdk.hybrid.cloud.cloud_reply import CloudReply
from edgesdk.hybrid.cloud.endpoint_state import EndpointState
from edgesdk.hybrid.cloud.refusal import error_for_status, hide_quotes
from edgesdk.hybrid.cloud.wire import InvalidChunk, Usage, parse_json
from edgesdk.system.cancellation import CancellationToken

# Log-probabilities of a long text are many times the text.
_MAX_BYTES = 2**28


async def request_completion(
    endpoint: EndpointState,
    body: dict[str, Any],
    patience: Patience,
    key: str,
    cancellation: CancellationToken,
    progress: SendProgress,
) -> dict[str, Any]:
    """Return what the endpoint says, which is a JSON object.

    Args:
        key: idempotency key.

    Raises:
        CloudError: there is no whole reply.
        DeadlineExceeded: the deadline came first.
        RequestError: the request cannot be written as JSON.
    """
    cloud = endpoint.cloud
    timer = AttemptTimer(cloud, cancellation)
    timer.start(patience.first_token, "its reply")
    request = {**body, "model": cloud.model}
    progress.requests += 1
    try:
        async with open_response(
            endpoint, request, key, timer, progress, url=cloud.completions_url
        ) as response:
            if 200 <= response.status_code < 300:
                return await _read_object(response, timer)
            refusal = await read_error_body(response, timer)
            raise error_for_status(cloud, response.status_code, response.headers, refusal, request)
    except EdgeError:
        raise
    except Exception as error:
        raise broken_off(cloud, hide_quotes(failure_reason(error), cloud, request)) from error


def completion_reply(found: dict[str, Any], endpoint: str, attempts: int) -> CloudReply:
    """What a completion counts for: its usage, for the budget."""
    counted = found.get("usage")
    usage = None
    if isinstance(counted, dict):
        prompt, output = counted.get("prompt_tokens"), counted.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(output, int):
            usage = Usage(max(prompt, 0), max(output, 0))
    return CloudReply("", "", (), "stop", usage, endpoint, attempts)


async def _read_object(response: httpx.Response, timer: AttemptTimer) -> dict[str, Any]:
    data = bytearray()
    with timer:
        async for piece in response.aiter_bytes():
            data += piece
            if len(data) > _MAX_BYTES:
                raise InvalidChunk("it sent a reply without an end")
    found = parse_json(data.decode("utf-8-sig", "replace"))
    if not isinstance(found, dict):
        raise InvalidChunk("it sent no JSON object")
    return found
