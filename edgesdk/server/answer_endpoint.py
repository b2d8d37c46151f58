"""An endpoint that answers: read the body, wait, and send JSON or a stream of events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from time import perf_counter

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgesdk.errors import CloudBroken, EdgeError
from edgesdk.generation.loop import Step
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.storage.journal import Route
from edgesdk.server.answers import AnswerEvent, RunningAnswer
from edgesdk.server.api_errors import ApiError, deadline_passed, shutting_down, to_api_error
from edgesdk.server.callable_tools import AnswerReader
from edgesdk.server.hybrid_routing import HoldPolicy
from edgesdk.server.request_parsing import ParsedRequest
from edgesdk.server.responses import (
    AnswerReply,
    Json,
    ResponseBuilder,
    ResponseMetadata,
    ResponsePart,
    reply_headers,
    routing_headers,
)
from edgesdk.server.service import Service
from edgesdk.tools.calls import ToolCall

_MAX_BODY_SECONDS = 30.0
# A client hears of a refusal only after it has sent its body, so that much of one is read.
_DRAIN_FACTOR = 16
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_DONE = b"data: [DONE]\n\n"
_log = logging.getLogger("edgesdk.server")


class AnswerEndpoint:
    """ASGI application of one path.

    A client that goes away cancels whatever its request is at: waiting, prefill, decode, or the
    cloud's answer.

    Args:
        parse: reads a body and its headers; given `time.perf_counter()` when the request came.
    """

    def __init__(
        self, service: Service, parse: Callable[[bytes, Headers, float], ParsedRequest]
    ) -> None:
        self._service = service
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        try:
            body = await _read_body(scope, receive, self._service.settings.body_limit)
        except ClientDisconnect:
            return
        except ApiError as error:
            await _send_error(error, "messages", scope, receive, send)
            return
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await self._answer(body, started, scope, receive, send)
            group.cancel_scope.cancel()

    async def _answer(
        self, body: bytes, started: float, scope: Scope, receive: Receive, send: Send
    ) -> None:
        param = "messages"
        try:
            # In a thread: a schema can take a while to compile.
            parsed = await self._service.in_thread(
                lambda: self._parse(body, Headers(scope=scope), started)
            )
            param = parsed.param
            answer = await self._service.start(parsed.model, started, parsed.prepare)
            try:
                builder = parsed.builder(_metadata(parsed, answer))
                if parsed.stream:
                    await self._send_stream(parsed, answer, builder, send)
                    return
                steps = [event async for event in answer.events if isinstance(event, Step)]
            finally:
                answer.cancel()
            reply = _finished_reply(answer)
            parts = _all_parts(reply, parsed.reader())
            self._count_calls(answer, parts)
            response = JSONResponse(
                builder.complete(steps, parts, reply), headers=reply_headers(reply)
            )
            await response(scope, receive, send)
        except Exception as error:
            await _send_error(error, param, scope, receive, send)

    async def _send_stream(
        self, parsed: ParsedRequest, answer: RunningAnswer, builder: ResponseBuilder, send: Send
    ) -> None:
        buffer = StreamBuffer(parsed.hold if answer.source.may_withdraw else "nothing")
        async with aclosing(_buffered(answer, buffer)) as events:
            # Nothing is sent before the first event: until then an error has a status, and most
            # often it is known by then who answers.
            first = await anext(events, None)
            headers = _stream_headers(parsed, answer, buffer)
            chunks = self._chunks(parsed, answer, builder, _with_first(first, events))
            await _send_events(chunks, headers, send)

    async def _chunks(
        self,
        parsed: ParsedRequest,
        answer: RunningAnswer,
        builder: ResponseBuilder,
        events: AsyncIterator[AnswerEvent],
    ) -> AsyncIterator[bytes]:
        """The stream's events (server-sent events, as OpenAI uses them); raises nothing."""
        reader = parsed.reader()
        steps: list[Step] = []
        try:
            for chunk in builder.first_chunks():
                yield _sse_event(chunk)
            async for event in events:
                if isinstance(event, Restart):
                    reader = parsed.reader()
                if isinstance(event, Step):
                    steps.append(event)
                parts = _parts_of(event, reader)
                self._count_calls(answer, parts)
                for part in parts:
                    for chunk in builder.part_chunks(part, steps):
                        yield _sse_event(chunk)
                    steps = []
            reply = _finished_reply(answer)
        except Exception as error:
            yield _sse_event(_api_error(error, parsed.param).body())
            return
        local = reply.receipt.route == "local"
        parts = [*reader.flush()] if local else [*reply.tool_calls]
        self._count_calls(answer, parts)
        if steps and not parts and parsed.logprobs:
            parts = [""]
        for part in parts:
            for chunk in builder.part_chunks(part, steps):
                yield _sse_event(chunk)
            steps = []
        yield _sse_event(builder.last_chunk(reply))
        if parsed.wants_usage:
            yield _sse_event(builder.usage_chunk(reply))
        yield _DONE

    def _count_calls(self, answer: RunningAnswer, parts: list[ResponsePart]) -> None:
        calls = sum(isinstance(part, ToolCall) for part in parts)
        self._service.metrics.count_calls(answer.loaded.model_info.name, calls)


class StreamBuffer:
    """Holds back what a client that only appends text must not be shown yet.

    Such a client cannot take back what it has shown. So pieces are held back until nobody will
    withdraw them, as far as the policy says.

    Attributes:
        route: who said what was shown; None until something was.
        reason: why the device's draft was withdrawn; None where it was not, or nobody said.
    """

    def __init__(self, policy: HoldPolicy) -> None:
        self.route: Route | None = None
        self.reason: str | None = None
        self._policy = policy
        self._held: list[AnswerEvent] = []

    def feed(self, event: AnswerEvent) -> list[AnswerEvent]:
        """What may be shown now.

        Raises:
            CloudBroken: what was shown is withdrawn, and the client could not be told.
        """
        if isinstance(event, Restart):
            return self._restart(event)
        route = _route_of(event)
        if self._policy == "answer" or (self._policy == "decision" and route == "local"):
            self._held.append(event)
            return []
        self.route = route
        return [event]

    def flush(self) -> list[AnswerEvent]:
        """What was held back, at the answer's end."""
        held, self._held = self._held, []
        return held

    def _restart(self, event: Restart) -> list[AnswerEvent]:
        self._held.clear()
        if self.route is None:
            self.reason = event.reason
            return []
        if self._policy == "nothing":
            return [event]
        raise CloudBroken(
            f"The answer was withdrawn under way: {event.reason}.", endpoint="", hint="Ask again."
        )


def _route_of(event: AnswerEvent) -> Route:
    if isinstance(event, Step):
        return "local"
    return event.route if isinstance(event, TextDelta) else "cloud"


def _parts_of(event: AnswerEvent, reader: AnswerReader) -> list[ResponsePart]:
    """What of an answer is certain after one more event."""
    if isinstance(event, Step):
        return [*reader.feed(event.text)]
    if isinstance(event, TextDelta):
        # What a cloud says in words is never a call.
        return [*reader.feed(event.text)] if event.route == "local" else [event.text]
    return [event]


def _all_parts(reply: AnswerReply, reader: AnswerReader) -> list[ResponsePart]:
    if reply.receipt.route == "cloud":
        return [reply.text, *reply.tool_calls]
    return [*reader.feed(reply.text), *reader.flush()]


def _metadata(parsed: ParsedRequest, answer: RunningAnswer) -> ResponseMetadata:
    model = answer.loaded.model
    return ResponseMetadata(
        model=parsed.model,
        engine=None if answer.source.may_withdraw else model.info.name,
        tokenizer=model.runtime.encoder.tokenizer,
        logprobs=parsed.logprobs,
        may_call=parsed.may_call,
        usage_follows=parsed.wants_usage,
    )


def _stream_headers(
    parsed: ParsedRequest, answer: RunningAnswer, buffer: StreamBuffer
) -> dict[str, str]:
    """The headers of a stream whose first event, if it has any, is known."""
    source = answer.source
    if not parsed.hybrid:
        return {}
    if answer.reply is not None:
        return reply_headers(answer.reply)
    if source.may_withdraw and buffer.route == "local":
        return routing_headers("undecided", None)
    return routing_headers(buffer.route or "local", buffer.reason or source.reason)


def _finished_reply(answer: RunningAnswer) -> AnswerReply:
    """The reply of an answer that has ended, where it is something to show."""
    reply = answer.reply
    if reply is None or reply.finish_reason == "cancelled":
        raise shutting_down()
    if reply.finish_reason == "deadline" and reply.receipt.output_tokens == 0:
        raise deadline_passed()
    return reply


async def _buffered(
    answer: RunningAnswer, buffer: StreamBuffer
) -> AsyncGenerator[AnswerEvent, None]:
    async for event in answer.events:
        for shown in buffer.feed(event):
            yield shown
    # What was held back of an answer that is none is never shown.
    _finished_reply(answer)
    for shown in buffer.flush():
        yield shown


async def _with_first(
    first: AnswerEvent | None, rest: AsyncIterator[AnswerEvent]
) -> AsyncIterator[AnswerEvent]:
    if first is not None:
        yield first
        async for event in rest:
            yield event


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
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


def _sse_event(content: Json) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()


async def _send_events(
    events: AsyncIterator[bytes], headers: Mapping[str, str], send: Send
) -> None:
    """Send a stream of events, which must raise nothing; `headers` are in Latin-1."""
    extra = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    start = {"type": "http.response.start", "status": 200, "headers": [*_STREAM_HEADERS, *extra]}
    await send(start)
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        # Neither sending nor an event that is there already gives way to the loop by itself, and
        # it is the loop that notices a client's leaving.
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_error(
    error: Exception, param: str, scope: Scope, receive: Receive, send: Send
) -> None:
    await _api_error(error, param).response()(scope, receive, send)


def _api_error(error: Exception, param: str) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EdgeError):
        return to_api_error(error, param=param)
    _log.error("An answer failed", exc_info=error)
    return ApiError(500, "The server failed; its log says more.", code="internal_error")
