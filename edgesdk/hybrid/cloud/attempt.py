"""Sends one request to one endpoint and reads its stream under time limits."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
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
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Charge
from edgesdk.hybrid.cloud.wire import (
    ChunkDelta,
    EventReader,
    EventTooLong,
    InvalidChunk,
    Usage,
    error_text,
    parse_chunk,
)
from edgesdk.system.cancellation import CancellationToken

# A gateway that heard nothing from the machine behind it does not know what that one did.
_UNKNOWING = (502, 504)


class Attempt:
    """What an endpoint sends, with a look ahead to its first token.

    One of `answered`, `failed` and `left` must follow, after its end.

    Args:
        index: of the endpoint.
        steps: of `edgesdk.hybrid.cloud.attempt.attempt`, not yet begun.
        sending: what `steps` tells of the request.
    """

    def __init__(
        self,
        index: int,
        cloud: Cloud,
        health: CircuitBreaker,
        charge: Charge,
        steps: AsyncGenerator[ChunkDelta, None],
        sending: SendProgress,
    ) -> None:
        self.index = index
        self.cloud = cloud
        self.failure: Exception | None = None
        self._health = health
        self._charge = charge
        self._steps = steps
        self._sending = sending
        self._ahead: list[ChunkDelta] = []
        health.asked()

    async def look_ahead(self) -> None:
        """Read until there is something to show, or `failure` is set."""
        try:
            async for delta in self._steps:
                self._ahead.append(delta)
                if not delta.empty or delta.finish_reason:
                    return
        except Exception as error:
            self.failure = error

    async def deltas(self) -> AsyncGenerator[ChunkDelta, None]:
        """All that it sends, what was looked at included; raises what `attempt` does."""
        for delta in self._ahead:
            yield delta
        if self.failure is not None:
            raise self.failure
        async with aclosing(self._steps):
            async for delta in self._steps:
                yield delta

    async def close(self) -> None:
        """End the request, where `deltas` was not read."""
        await self._steps.aclose()

    def answered(self, usage: Usage | None) -> None:
        """It gave a whole answer."""
        self._health.answered()
        if usage is not None:
            self._charge.settle(usage)

    def failed(self, error: CloudError) -> None:
        """It gave none. What it did of it may cost, unless it says that it did nothing."""
        self._health.failed(error, wait=error.retry_after)
        declined = error.status is not None and error.status not in (200, *_UNKNOWING)
        if declined or not self._sending.begun:
            self._charge.release()

    def left(self) -> None:
        """It ended without telling anything about the endpoint."""
        self._health.left()
        if not self._sending.begun:
            self._charge.release()


_END = "[DONE]"
_BUSY = (408, 409, 425, 429)
_ERROR_BYTES = 2**16


@dataclass
class SendProgress:
    """How far a request came.

    Attributes:
        begun: its first byte may have gone out, so that the endpoint may be at work.
    """

    begun: bool = False

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Hears what httpcore does ("trace" of its request extensions)."""
        self.begun = self.begun or event.endswith("send_request_headers.started")


async def attempt(
    http: httpx.AsyncClient,
    cloud: Cloud,
    body: dict[str, Any],
    *,
    idempotency_key: str,
    deadline: CancellationToken,
    sending: SendProgress,
) -> AsyncGenerator[ChunkDelta, None]:
    """What the endpoint sends, chunk by chunk, until it says that it is done.

    Args:
        http: must not follow redirects.
        body: of the request; model and streaming are added.
        sending: is told how far the request came.

    Raises:
        CloudUnreachable, CloudRefused, CloudBusy, CloudBroken: as they say.
        DeadlineExceeded: the deadline came first.
    """
    limits = cloud.limits
    request = {**body, "model": cloud.model, "stream": True}
    request["stream_options"] = {"include_usage": True}
    headers = {**cloud.headers, "Accept": "text/event-stream", "Idempotency-Key": idempotency_key}
    if cloud.api_key is not None:
        headers["Authorization"] = f"Bearer {cloud.api_key}"
    watch = _Watch(cloud, deadline)
    async with _opened(http, cloud, request, headers, watch, sending) as response:
        await _check(response, cloud, watch)
        reader = EventReader()
        data = response.aiter_bytes()
        ended = False
        watch.expect(limits.first_token, "its first token")
        while True:
            try:
                with watch:
                    read = await anext(data)
            except StopAsyncIteration:
                raise CloudBroken(
                    f"{cloud.name} ended its answer without {'[DONE]' if ended else 'a finish'}.",
                    endpoint=cloud.name,
                ) from None
            except httpx.HTTPError as error:
                raise CloudBroken(
                    f"{cloud.name} broke off: {_reason(error)}.", endpoint=cloud.name
                ) from error
            try:
                for event in reader.feed(read):
                    if event == _END:
                        if not ended:
                            raise InvalidChunk("it said [DONE] without a finish_reason")
                        return
                    delta = parse_chunk(event)
                    if ended and not delta.empty:
                        raise InvalidChunk("it went on after its finish_reason")
                    ended = ended or delta.finish_reason is not None
                    if not delta.empty or delta.finish_reason:
                        watch.expect(limits.between_pieces, "the next piece")
                    yield delta
            except (InvalidChunk, EventTooLong, UnicodeDecodeError) as error:
                what = (
                    str(error) if isinstance(error, InvalidChunk) else "its stream is no event text"
                )
                raise CloudBroken(
                    f"{cloud.name} broke off: {what}.", endpoint=cloud.name
                ) from error


class _Watch:
    """Limits each wait: to what is left of the current stage, and to the deadline."""

    def __init__(self, cloud: Cloud, deadline: CancellationToken) -> None:
        self._cloud = cloud
        self._deadline = deadline
        self._stage = CancellationToken()
        self._what = ""
        self._scope = anyio.CancelScope()

    def expect(self, seconds: float, what: str) -> None:
        """A stage begins, in which `what` must come within `seconds`."""
        self._stage = CancellationToken(seconds)
        self._seconds = seconds
        self._what = what

    def __enter__(self) -> None:
        self._scope = anyio.move_on_after(min(self._stage.remaining, self._deadline.remaining))
        self._scope.__enter__()

    def __exit__(self, *raised: Any) -> None:
        swallowed = self._scope.__exit__(*raised)
        if self._scope.cancelled_caught or swallowed:
            if self._deadline.expired:
                raise DeadlineExceeded(
                    f"The deadline passed while {self._cloud.name} was to send {self._what}.",
                    hint="Allow more time.",
                )
            raise CloudUnreachable(
                f"{self._cloud.name} did not send {self._what} within {self._seconds:g} s.",
                endpoint=self._cloud.name,
                hint="Its limits are those of Cloud(limits=...).",
            )


@asynccontextmanager
async def _opened(
    http: httpx.AsyncClient,
    cloud: Cloud,
    body: dict[str, Any],
    headers: dict[str, str],
    watch: _Watch,
    sending: SendProgress,
) -> AsyncIterator[httpx.Response]:
    # Waiting is `watch`'s affair: it also sees bytes that trickle.
    timeout = httpx.Timeout(None, connect=cloud.limits.connect)
    request = http.build_request("POST", cloud.chat_url, json=body, headers=headers)
    request.extensions |= {"timeout": timeout.as_dict(), "trace": sending.trace}
    watch.expect(cloud.limits.connect + cloud.limits.first_token, "an answer")
    try:
        with watch:
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


async def _check(response: httpx.Response, cloud: Cloud, watch: _Watch) -> None:
    """Raise unless the response is a stream of events."""
    status = response.status_code
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if status == 200 and kind == "text/event-stream":
        return
    said = await _said(response, watch)
    if status == 200:
        raise CloudBroken(
            f"{cloud.name} sent {kind or 'no content type'} instead of an event stream{said}.",
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
    kinds: type[CloudError] = CloudBusy if status in _BUSY or status >= 500 else CloudRefused
    raise kinds(
        f"{cloud.name} answered {status}{said}.",
        endpoint=cloud.name,
        status=status,
        retry_after=_retry_after(response.headers.get("retry-after")),
        hint="Check the key." if status in (401, 403) else None,
    )


async def _said(response: httpx.Response, watch: _Watch) -> str:
    """What an error's body says, as the end of a sentence."""
    body = b""
    try:
        with watch:
            async for data in response.aiter_bytes():
                body += data
                if len(body) > _ERROR_BYTES:
                    break
    except (httpx.HTTPError, CloudError):
        return ""
    try:
        found = httpx.Response(200, content=body).json()
    except ValueError:
        return ""
    return f": {error_text(found)}"


def _retry_after(value: str | None) -> float | None:
    """RFC 9110, section 10.2.3: seconds, or a date."""
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
