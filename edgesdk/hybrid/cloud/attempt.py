"""Sends one request to one endpoint and reads its stream under time limits."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

import anyio
import httpx

from edgesdk.errors import (
    CloudBroken,
    CloudError,
    CloudUnreachable,
    DeadlineExceeded,
    EdgeError,
    RequestError,
)
from edgesdk.hybrid.cloud.cloud_reply import CloudReply
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.endpoint_state import EndpointState
from edgesdk.hybrid.cloud.refusal import (
    Refusal,
    error_for_status,
    error_in_band,
    hide_quotes,
    read_refusal,
    refusal_of,
)
from edgesdk.hybrid.cloud.spending import AttemptCharge
from edgesdk.hybrid.cloud.wire import (
    END,
    ChunkDelta,
    InBandError,
    InvalidChunk,
    parse_chunk,
    read_events,
)
from edgesdk.system.cancellation import CancellationToken

# A gateway that heard nothing from the machine behind it does not know what that one did.
_GATEWAY_STATUSES = (502, 504)
# What an endpoint says of one request, not of the key or of itself.
BAD_REQUEST_STATUSES = (400, 413, 422)
_MAX_ERROR_BYTES = 2**16
# A reply that has its finish reason is whole; only the count of its tokens may still come.
_USAGE_SECONDS = 2.0


@dataclass(frozen=True)
class Patience:
    """Seconds that one attempt may take to its first token, and from one token to the next."""

    first_token: float
    between_tokens: float


class SendProgress:
    """How far a request came.

    Attributes:
        begun: its first byte may have gone out, so that the endpoint may be at work.
        requests: how many were sent; more than one where parameters had to be learned.
    """

    def __init__(self) -> None:
        self.begun = False
        self.requests = 0

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Hear what httpcore does ("trace" of its request extensions)."""
        self.begun = self.begun or event.endswith("send_request_headers.started")


class Attempt:
    """One request, with a look ahead to its first token.

    It tells the endpoint's circuit breaker and the budget how the request went: one of `succeed`,
    `fail` and `abandon` must follow after its end.

    Args:
        chunks: of `stream_chunks`, not yet begun.
    """

    def __init__(
        self,
        endpoint: EndpointState,
        charge: AttemptCharge,
        chunks: AsyncGenerator[ChunkDelta, None],
        progress: SendProgress,
    ) -> None:
        self.endpoint = endpoint
        self.failure: Exception | None = None
        self._breaker = endpoint.breaker
        self._charge = charge
        self._chunks = chunks
        self._progress = progress
        self._ahead: list[ChunkDelta] = []
        self._started = monotonic()
        self._first_token: float | None = None
        self._breaker.begin()

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
            self._note(delta)
            yield delta
        if self.failure is not None:
            raise self.failure
        async with aclosing(self._chunks):
            async for delta in self._chunks:
                self._note(delta)
                yield delta

    async def close(self) -> None:
        """End the request, where `deltas` was not read."""
        await self._chunks.aclose()

    def succeed(self, reply: CloudReply) -> None:
        """The endpoint gave a complete reply."""
        self._breaker.succeed(self._first_token)
        self._charge.settle(reply.usage, reply.num_bytes)

    def fail(self, error: CloudError) -> None:
        """The endpoint gave no reply. Its work may cost, unless it says that it did nothing."""
        if error.status in BAD_REQUEST_STATUSES:
            # It is there, and others may be asked of it.
            self._breaker.succeed()
        else:
            self._breaker.fail(error, retry_after=error.retry_after)
        declined = error.status is not None and error.status not in (200, *_GATEWAY_STATUSES)
        if declined or not self._progress.begun:
            self._charge.release()

    def abandon(self) -> None:
        """The request ended without telling anything about the endpoint."""
        self._breaker.abandon()
        if not self._progress.begun:
            self._charge.release()

    def _note(self, delta: ChunkDelta) -> None:
        if self._first_token is None and not delta.empty:
            self._first_token = monotonic() - self._started


async def stream_chunks(
    endpoint: EndpointState,
    body: dict[str, Any],
    *,
    patience: Patience,
    idempotency_key: str,
    cancellation: CancellationToken,
    progress: SendProgress,
) -> AsyncGenerator[ChunkDelta, None]:
    """Send a request, and yield what the endpoint streams until the reply is whole.

    That is so at "[DONE]", or where the stream ends after a finish reason. Where a refusal tells
    which parameters the endpoint takes, the request is sent again. This is the one place where what
    the network and other packages raise becomes an error of the SDK.

    Args:
        cancellation: its deadline holds; whoever cancels it ends the iteration.

    Raises:
        CloudError: there is no whole reply.
        DeadlineExceeded: the deadline came first.
        RequestError: the request cannot be written as JSON.
    """
    cloud, parameters = endpoint.cloud, endpoint.parameters
    timer = AttemptTimer(cloud, cancellation)
    timer.start(patience.first_token, "its first token")
    request = {**body, "model": cloud.model, "stream": True}
    request["stream_options"] = {"include_usage": True}
    try:
        while True:
            sent = parameters.adapt(request)
            progress.requests += 1
            # Another body under the same key is a mistake for endpoints that heed it.
            number = progress.requests
            key = idempotency_key if number == 1 else f"{idempotency_key}-{number}"
            async with open_response(endpoint, sent, key, timer, progress) as response:
                status = response.status_code
                if 200 <= status < 300:
                    reading = _read(response, cloud, sent, patience, timer)
                    async with aclosing(reading) as deltas:
                        async for delta in deltas:
                            yield delta
                    return
                refusal = await read_error_body(response, timer)
            if not parameters.learn(status, refusal, sent):
                raise error_for_status(cloud, status, response.headers, refusal, sent)
    except EdgeError:
        raise
    except Exception as error:
        raise broken_off(cloud, hide_quotes(failure_reason(error), cloud, request)) from error


def broken_off(cloud: Cloud, reason: str) -> CloudBroken:
    """Make the error for a stream that did not come to its end."""
    return CloudBroken(f"{cloud.name} broke off: {reason}.", endpoint=cloud.name)


async def _read(
    response: httpx.Response,
    cloud: Cloud,
    sent: dict[str, Any],
    patience: Patience,
    timer: AttemptTimer,
) -> AsyncGenerator[ChunkDelta, None]:
    """Yield the chunks of a reply until it is whole."""
    begun = finished = False
    # Text after a finish reason: of this endpoint it says nothing.
    misleading = False
    async with aclosing(read_events(response.aiter_bytes())) as events:
        while True:
            try:
                with timer:
                    event = await anext(events, None)
                if event is None:
                    if finished:
                        return
                    raise InvalidChunk(f"its answer ended without a finish or {END}")
                if event.strip() == END:
                    if not begun and not finished:
                        raise InvalidChunk(f"it said {END} without an answer")
                    return
                delta = parse_chunk(event, whole=not begun)
            except InBandError as error:
                if finished and begun:
                    return
                raise error_in_band(cloud, refusal_of(error.body), sent) from error
            except Exception:
                # The reply is whole, and not to be paid for again, whatever comes after it.
                if finished and begun:
                    return
                raise
            begun = begun or not delta.empty
            misleading = misleading or (finished and not delta.empty)
            finished = (finished and delta.empty) or delta.finish_reason is not None
            finished = finished and not misleading
            if finished and delta.empty:
                timer.start(_USAGE_SECONDS, "its usage")
            elif not delta.empty:
                timer.start(patience.between_tokens, "the next token")
            yield delta


class AttemptTimer:
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
                f"{self._cloud.name} did not send {self._awaited} within {self._seconds:.3g} s.",
                endpoint=self._cloud.name,
                hint="Its limits are those of Cloud(timeouts=...), and of the deadline.",
            )


@asynccontextmanager
async def open_response(
    endpoint: EndpointState,
    body: dict[str, Any],
    key: str,
    timer: AttemptTimer,
    progress: SendProgress,
    *,
    url: str | None = None,
) -> AsyncIterator[httpx.Response]:
    """Send a request, and give the response, whose body is not read yet.

    Args:
        key: idempotency key.
        url: where it goes; None for chat completions.

    Raises:
        CloudUnreachable: no response came.
        RequestError: the request cannot be written as JSON.
    """
    cloud, http = endpoint.cloud, endpoint.http
    headers = {
        "Accept": "text/event-stream",
        "Content-Type": "application/json",
        "Idempotency-Key": key,
    }
    if cloud.api_key is not None:
        headers["Authorization"] = f"Bearer {cloud.api_key}"
    own = {name.lower() for name in cloud.headers}
    headers = {name: value for name, value in headers.items() if name.lower() not in own}
    request = http.build_request(
        "POST", url or cloud.chat_url, content=_encoded(body), headers={**headers, **cloud.headers}
    )
    # Reading is limited by `timer`, which also sees bytes that trickle.
    timeout = httpx.Timeout(None, connect=cloud.timeouts.connect)
    request.extensions |= {"timeout": timeout.as_dict(), "trace": progress.trace}
    try:
        with timer:
            response = await http.send(request, stream=True)
    except EdgeError:
        # Some of them are OSErrors.
        raise
    except (httpx.TransportError, OSError) as error:
        raise CloudUnreachable(
            f"{cloud.name} cannot be reached: {failure_reason(error)}.", endpoint=cloud.name
        ) from error
    try:
        yield response
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        # Without the value, which may be private.
        raise RequestError(
            f"The request cannot be sent as JSON ({type(error).__name__}).",
            hint="Look for lone surrogates, NaN or infinite numbers, and very deep nesting.",
        ) from None


async def read_error_body(response: httpx.Response, timer: AttemptTimer) -> Refusal:
    """Read an error's body; what cannot be read says nothing."""
    body = b""
    try:
        with timer:
            async for data in response.aiter_bytes():
                body += data
                if len(body) > _MAX_ERROR_BYTES:
                    break
    except DeadlineExceeded:
        raise
    except (httpx.HTTPError, CloudError):
        return Refusal()
    return read_refusal(body.decode("utf-8-sig", "replace"))


def failure_reason(error: BaseException) -> str:
    """Say why a request failed, without anything that may be private."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message})"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, InvalidChunk | httpx.HTTPError):
        return " ".join(str(error).split()) or type(error).__name__
    # Its text may be anything.
    return type(error).__name__
