"""Sends one request to one endpoint and reads its stream under time limits."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any

import anyio
import httpx

from edgesdk.errors import (
    CloudBroken,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    DeadlineExceeded,
)
from edgesdk.hybrid.cloud.circuit_breaker import CircuitBreaker
from edgesdk.hybrid.cloud.cloud_reply import CloudReply
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import AttemptCharge
from edgesdk.hybrid.cloud.wire import (
    ChunkDelta,
    InvalidChunk,
    error_text,
    parse_chunk,
    read_events,
)
from edgesdk.system.cancellation import CancellationToken

_END = "[DONE]"
_BUSY_STATUSES = (408, 409, 425, 429)
# A gateway that heard nothing from the machine behind it does not know what that one did.
_GATEWAY_STATUSES = (502, 504)
_MAX_ERROR_BYTES = 2**16


class SendProgress:
    """How far a request came.

    Attributes:
        begun: its first byte may have gone out, so that the endpoint may be at work.
    """

    def __init__(self) -> None:
        self.begun = False

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Hear what httpcore does ("trace" of its request extensions)."""
        self.begun = self.begun or event.endswith("send_request_headers.started")


class Attempt:
    """One request, with a look ahead to its first token.

    It tells the endpoint's circuit breaker and the budget how the request went: one of `succeed`,
    `fail` and `abandon` must follow after its end.

    Args:
        index: of the endpoint.
        chunks: of `stream_chunks`, not yet begun.
        progress: what `chunks` tells of the request.
    """

    def __init__(
        self,
        index: int,
        cloud: Cloud,
        breaker: CircuitBreaker,
        charge: AttemptCharge,
        chunks: AsyncGenerator[ChunkDelta, None],
        progress: SendProgress,
    ) -> None:
        self.index = index
        self.cloud = cloud
        self.failure: Exception | None = None
        self._breaker = breaker
        self._charge = charge
        self._chunks = chunks
        self._progress = progress
        self._ahead: list[ChunkDelta] = []
        breaker.begin()

    async def look_ahead(self) -> None:
        """Read until there is something to show, or `failure` is set."""
        try:
            async for delta in self._chunks:
                self._ahead.append(delta)
                if not delta.empty or delta.finish_reason:
                    return
        except Exception as error:
            self.failure = error

    async def deltas(self) -> AsyncGenerator[ChunkDelta, None]:
        """Yield all chunks, those of `look_ahead` too; raises what `stream_chunks` does."""
        for delta in self._ahead:
            yield delta
        if self.failure is not None:
            raise self.failure
        async with aclosing(self._chunks):
            async for delta in self._chunks:
                yield delta

    async def close(self) -> None:
        """End the request, where `deltas` was not read."""
        await self._chunks.aclose()

    def succeed(self, reply: CloudReply) -> None:
        """The endpoint gave a complete reply."""
        self._breaker.succeed()
        self._charge.settle(reply.usage, reply.num_bytes)

    def fail(self, error: CloudError) -> None:
        """The endpoint gave no reply. Its work may cost, unless it says that it did nothing."""
        self._breaker.fail(error, retry_after=error.retry_after)
        declined = error.status is not None and error.status not in (200, *_GATEWAY_STATUSES)
        if declined or not self._progress.begun:
            self._charge.release()

    def abandon(self) -> None:
        """The request ended without telling anything about the endpoint."""
        self._breaker.abandon()
        if not self._progress.begun:
            self._charge.release()


async def stream_chunks(
    http: httpx.AsyncClient,
    cloud: Cloud,
    body: dict[str, Any],
    *,
    idempotency_key: str,
    cancellation: CancellationToken,
    progress: SendProgress,
) -> AsyncGenerator[ChunkDelta, None]:
    """Send a request, and yield what the endpoint streams until it says that it is done.

    Args:
        http: must not follow redirects.
        body: of the request; model and streaming are added.
        cancellation: its deadline holds; whoever cancels it ends the iteration.
        progress: is told how far the request came.

    Raises:
        CloudUnreachable, CloudRefused, CloudBusy, CloudBroken: as they say.
        DeadlineExceeded: the deadline came first.
    """
    request = {**body, "model": cloud.model, "stream": True}
    request["stream_options"] = {"include_usage": True}
    headers = {**cloud.headers, "Accept": "text/event-stream", "Idempotency-Key": idempotency_key}
    if cloud.api_key is not None:
        headers["Authorization"] = f"Bearer {cloud.api_key}"
    timer = _StageTimer(cloud, cancellation)
    async with (
        _open(http, cloud, request, headers, timer, progress) as response,
        aclosing(read_events(response.aiter_bytes())) as events,
    ):
        await _check(response, cloud, timer)
        finished = False
        timer.start(cloud.timeouts.first_token, "its first token")
        while True:
            try:
                with timer:
                    event = await anext(events)
                if event == _END:
                    if not finished:
                        raise InvalidChunk("it said [DONE] without a finish_reason")
                    return
                delta = parse_chunk(event)
                if finished and not delta.empty:
                    raise InvalidChunk("it went on after its finish_reason")
            except StopAsyncIteration:
                raise CloudBroken(
                    f"{cloud.name} ended its answer without {_END if finished else 'a finish'}.",
                    endpoint=cloud.name,
                ) from None
            except httpx.HTTPError as error:
                raise broken_off(cloud, _reason(error)) from error
            except InvalidChunk as error:
                raise broken_off(cloud, str(error)) from error
            finished = finished or delta.finish_reason is not None
            if not delta.empty or delta.finish_reason:
                timer.start(cloud.timeouts.between_tokens, "the next token")
            yield delta


def broken_off(cloud: Cloud, reason: str) -> CloudBroken:
    """Make the error for a stream that did not come to its end."""
    return CloudBroken(f"{cloud.name} broke off: {reason}.", endpoint=cloud.name)


class _StageTimer:
    """Limits each wait: to what is left of the current stage, and to the deadline."""

    def __init__(self, cloud: Cloud, cancellation: CancellationToken) -> None:
        self._cloud = cloud
        self._cancellation = cancellation
        self._seconds = self._ends = 0.0
        self._awaited = ""
        self._scope = anyio.CancelScope()

    def start(self, seconds: float, awaited: str) -> None:
        """Begin a stage, in which `awaited` must come within `seconds`."""
        self._seconds = seconds
        self._ends = monotonic() + seconds
        self._awaited = awaited

    def __enter__(self) -> None:
        left = min(self._ends - monotonic(), self._cancellation.remaining)
        self._scope = anyio.move_on_after(max(left, 0.0))
        self._scope.__enter__()

    def __exit__(self, *raised: Any) -> None:
        swallowed = self._scope.__exit__(*raised)
        if self._scope.cancelled_caught or swallowed:
            if self._cancellation.expired:
                raise DeadlineExceeded(
                    f"The deadline passed while {self._cloud.name} was to send {self._awaited}.",
                    hint="Allow more time.",
                )
            raise CloudUnreachable(
                f"{self._cloud.name} did not send {self._awaited} within {self._seconds:g} s.",
                endpoint=self._cloud.name,
                hint="Its limits are those of Cloud(timeouts=...).",
            )


@asynccontextmanager
async def _open(
    http: httpx.AsyncClient,
    cloud: Cloud,
    body: dict[str, Any],
    headers: dict[str, str],
    timer: _StageTimer,
    progress: SendProgress,
) -> AsyncIterator[httpx.Response]:
    # Reading is limited by `timer`, which also sees bytes that trickle.
    timeout = httpx.Timeout(None, connect=cloud.timeouts.connect)
    request = http.build_request("POST", cloud.chat_url, json=body, headers=headers)
    request.extensions |= {"timeout": timeout.as_dict(), "trace": progress.trace}
    timer.start(cloud.timeouts.connect + cloud.timeouts.first_token, "an answer")
    try:
        with timer:
            response = await http.send(request, stream=True)
    except httpx.TransportError as error:
        raise CloudUnreachable(
            f"{cloud.name} cannot be reached: {_reason(error)}.", endpoint=cloud.name
        ) from error
    try:
        yield response
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()


async def _check(response: httpx.Response, cloud: Cloud, timer: _StageTimer) -> None:
    """Raise unless the response is a stream of events."""
    status = response.status_code
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if status == 200 and kind == "text/event-stream":
        return
    message = await _error_message(response, timer)
    if status == 200:
        raise CloudBroken(
            f"{cloud.name} sent {kind or 'no content type'} instead of an event stream{message}.",
            endpoint=cloud.name,
            status=status,
        )
    if 300 <= status < 400:
        raise CloudRefused(
            f"{cloud.name} redirects; neither the key nor the prompt is sent on.",
            endpoint=cloud.name,
            status=status,
            hint="Give the final address as base_url.",
        )
    is_busy = status in _BUSY_STATUSES or status >= 500
    kinds: type[CloudError] = CloudBusy if is_busy else CloudRefused
    raise kinds(
        f"{cloud.name} answered {status}{message}.",
        endpoint=cloud.name,
        status=status,
        retry_after=_retry_after(response.headers.get("retry-after")),
        hint="Check the key." if status in (401, 403) else None,
    )


async def _error_message(response: httpx.Response, timer: _StageTimer) -> str:
    """Read what an error's body says, as the end of a sentence."""
    body = b""
    try:
        with timer:
            async for data in response.aiter_bytes():
                body += data
                if len(body) > _MAX_ERROR_BYTES:
                    break
    except (httpx.HTTPError, CloudError):
        return ""
    try:
        found = httpx.Response(200, content=body).json()
    except ValueError:
        return ""
    return f": {error_text(found)}"


def _retry_after(value: str | None) -> float | None:
    """Parse the header (RFC 9110, section 10.2.3): seconds, or a date."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max((until - datetime.now(timezone.utc)).total_seconds(), 0.0)


def _reason(error: httpx.HTTPError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message})"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time"
    return " ".join(str(error).split()) or type(error).__name__
