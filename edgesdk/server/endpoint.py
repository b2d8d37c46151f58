"""The endpoints that answer: read the body, wait, and send JSON or a stream of events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from time import perf_counter

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgesdk.errors import EdgeError
from edgesdk.generation.loop import Finish, Step
from edgesdk.hybrid.cloud.cloud_reply import ReasoningDelta, Restart
from edgesdk.hybrid.cloud.failover import OnBreak
from edgesdk.hybrid.reply import HybridEvent, HybridReply
from edgesdk.server.api_errors import ApiError, deadline_passed, shutting_down, to_api_error
from edgesdk.server.callable_tools import CheckedCall
from edgesdk.server.hybrid_answer import HybridAnswer, PreparedHybridAnswer
from edgesdk.server.hybrid_routing import HoldPolicy, HybridClients
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.request_parsing import ParsedHybridRequest, ParsedRequest, parse_hybrid_chat
from edgesdk.server.responses import (
    HybridResponseBuilder,
    Json,
    ResponseBuilder,
    ResponseMetadata,
    routing_headers,
)
from edgesdk.server.service import DeviceAnswer, Service
from edgesdk.server.settings import ServerSettings
from edgesdk.server.stream_buffer import StreamBuffer
from edgesdk.server.tool_call_reader import AnswerPart

_MAX_BODY_SECONDS = 30.0
# A client hears of a refusal only after it has sent its body, so that much of one is read.
_DRAIN_FACTOR = 16
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
_log = logging.getLogger("edgesdk.server")


class AnswerEndpoint:
    """ASGI application of one path.

    A client that goes away cancels whatever its request is at: waiting, prefill or decode.
    """

    def __init__(
        self, service: Service, ask: Callable[[bytes, ServerSettings, float], ParsedRequest]
    ) -> None:
        self._service = service
        self._ask = ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._service.settings.body_limit
        await while_connected(scope, receive, send, limit, self._answer)

    async def _answer(
        self, body: bytes, started: float, scope: Scope, receive: Receive, send: Send
    ) -> None:
        settings = self._service.settings
        try:
            # In a thread: a schema can take a while to compile.
            asked = await self._service.in_thread(lambda: self._ask(body, settings, started))
        except Exception as error:
            await send_error(error, "messages", scope, receive, send)
        else:
            await answer_on_device(self._service, asked, scope, receive, send)


async def answer_on_device(
    service: Service, asked: ParsedRequest, scope: Scope, receive: Receive, send: Send
) -> None:
    """Have a model of this server answer a request, within `while_connected`."""
    try:
        answer = await service.answer(asked.job)
        try:
            async with aclosing(answer.steps()) as steps:
                # Nothing is sent before the first step: until then an error has a status.
                first = await anext(steps, None)
                if first is None:
                    _finish_of(answer)
                shape = asked.builder_for(answer.loaded.model)
                everything = _with_first(first, steps)
                if asked.stream:
                    events = _events(service, answer, everything, shape, asked)
                    await send_stream(events, send, asked.headers)
                    return
                taken = [step async for step in everything]
        finally:
            answer.cancel()
        reader = asked.reader()
        parts = reader.feed("".join(step.text for step in taken)) + reader.rest()
        _count_calls(service, answer, parts)
        whole = shape.whole(taken, parts, _finish_of(answer))
        await JSONResponse(whole, headers=asked.headers)(scope, receive, send)
    except Exception as error:
        await send_error(error, asked.param, scope, receive, send)


async def _events(
    service: Service,
    answer: DeviceAnswer,
    steps: AsyncIterator[Step],
    shape: ResponseBuilder,
    asked: ParsedRequest,
) -> AsyncIterator[bytes]:
    """The stream's events (server-sent events, as OpenAI uses them)."""
    for chunk in shape.opening():
        yield sse_event(chunk)
    reader = asked.reader()
    held: list[Step] = []
    try:
        async for step in steps:
            held.append(step)
            parts = reader.feed(step.text)
            _count_calls(service, answer, parts)
            for part in parts:
                for chunk in shape.chunks(held, part):
                    yield sse_event(chunk)
                held = []
        finish = _finish_of(answer)
    except Exception as error:
        yield sse_event(api_error(error, asked.param).body())
        return
    parts = reader.rest()
    _count_calls(service, answer, parts)
    if held and not parts and asked.job.logprobs:
        parts = [""]
    for part in parts:
        for chunk in shape.chunks(held, part):
            yield sse_event(chunk)
        held = []
    yield sse_event(shape.closing(finish))
    if asked.wants_usage:
        yield sse_event(shape.usage_chunk(finish))
    yield DONE


def _count_calls(service: Service, answer: DeviceAnswer, parts: list[AnswerPart]) -> None:
    calls = sum(isinstance(part, CheckedCall) for part in parts)
    service.metrics.count_calls(answer.loaded.model_info.name, calls)


async def while_connected(
    scope: Scope,
    receive: Receive,
    send: Send,
    limit: int,
    answer: Callable[[bytes, float, Scope, Receive, Send], Awaitable[None]],
) -> None:
    """Have a request answered, as long as its client is there.

    Args:
        limit: most bytes of the body.
        answer: is given the body, and `time.perf_counter()` when the request came.
    """
    started = perf_counter()
    try:
        body = await read_body(scope, receive, limit)
    except ClientDisconnect:
        return
    except ApiError as error:
        await send_error(error, "messages", scope, receive, send)
        return
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await answer(body, started, scope, receive, send)
        group.cancel_scope.cancel()


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The body of a JSON request.

    Raises:
        ApiError: it is not declared as JSON (415), too large (413), or too slow to come (408).
        ClientDisconnect: the client went away.
    """
    declared = Headers(scope=scope).get("content-type", "")
    body = bytearray()
    size = 0
    with anyio.move_on_after(_MAX_BODY_SECONDS) as scope_of_time:
        async for part in Request(scope, receive).stream():
            size += len(part)
            if size <= limit:
                body += part
            elif size > _DRAIN_FACTOR * limit:
                break
    if scope_of_time.cancelled_caught:
        raise ApiError(408, "The request's body did not come in time.", code="body_too_slow")
    if size > limit:
        raise ApiError(413, f"The body is larger than {limit:,} bytes.", code="body_too_large")
    if declared.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            415, "The Content-Type must be application/json.", code="unsupported_media_type"
        )
    return bytes(body)


async def _with_first(first: Step | None, rest: AsyncIterator[Step]) -> AsyncIterator[Step]:
    if first is not None:
        yield first
        async for step in rest:
            yield step


def sse_event(content: Json) -> bytes:
    """An event with JSON."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()


def _finish_of(answer: DeviceAnswer) -> Finish:
    """How an answer ended, where that is something to show."""
    finish = answer.finish
    assert finish is not None, "an answer whose steps ended without an error has a finish"
    if finish.reason == "cancelled":
        raise shutting_down()
    if finish.reason == "deadline" and not finish.tokens:
        raise deadline_passed()
    return finish


async def send_stream(events: AsyncIterator[bytes], send: Send, headers: Mapping[str, str]) -> None:
    """Send a stream of events, which must raise nothing.

    Args:
        headers: besides those that any such stream has; in Latin-1.
    """
    besides = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    everything = [*_STREAM_HEADERS, *besides]
    await send({"type": "http.response.start", "status": 200, "headers": everything})
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        # Neither sending nor a step that is there already gives way to the loop by itself, and it
        # is the loop that notices a client's leaving.
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_error(
    error: Exception, param: str, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer with an error."""
    said = api_error(error, param)
    await JSONResponse(said.body(), said.status, said.headers)(scope, receive, send)


def api_error(error: Exception, param: str) -> ApiError:
    """What a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EdgeError):
        return to_api_error(error, param=param)
    _log.error("An answer failed", exc_info=error)
    return ApiError(500, "The server failed; its log says more.", code="internal_error")


_PARAM = "messages"
# What a stream says in its headers where another may still answer.
_UNDECIDED = "undecided"


@dataclass(frozen=True)
class StreamedAnswer:
    """An answer that goes out piece by piece."""

    work: HybridAnswer
    shape: HybridResponseBuilder
    asked: ParsedHybridRequest
    holding: StreamBuffer


class HybridEndpoint:
    """ASGI application of `/v1/chat/completions` where a cloud may answer too.

    A client that goes away cancels its answer, on the device and in the cloud.
    """

    def __init__(self, service: Service, setup: HybridClients) -> None:
        self._service = service
        self._setup = setup

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._service.settings.body_limit
        await while_connected(scope, receive, send, limit, self._answer)

    async def _answer(
        self, body: bytes, started: float, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            service, policy = self._service, self._setup.policy
            headers = Headers(scope=scope)
            asked = await service.in_thread(
                lambda: parse_hybrid_chat(body, headers, service.settings, policy, started)
            )
            if isinstance(asked, ParsedRequest):
                await answer_on_device(service, asked, scope, receive, send)
                return
            hold = self._hold(asked)
            work = await self._begin(asked, hold, started)
            metadata = ResponseMetadata(
                model=asked.model,
                engine=None if work.others else work.loaded.model.info.name,
                tokenizer=work.loaded.model.runtime.encoder.tokenizer,
                logprobs=False,
                usage_follows=asked.wants_usage,
            )
            shape = HybridResponseBuilder(metadata, may_call=asked.may_call)
            try:
                if asked.stream:
                    holding = StreamBuffer(hold if work.others else "nothing")
                    await self._stream(StreamedAnswer(work, shape, asked, holding), send)
                    return
                async with aclosing(work.events()) as events:
                    async for _ in events:
                        pass
            finally:
                work.cancel()
            reply = _finished_reply(work)
            parts = _parts(reply, asked)
            told = routing_headers(reply.route, reply.reason)
            await JSONResponse(shape.whole(reply, parts), headers=told)(scope, receive, send)
        except Exception as error:
            await send_error(error, _PARAM, scope, receive, send)

    def _hold(self, asked: ParsedHybridRequest) -> HoldPolicy:
        if not asked.stream or (asked.whole and self._setup.hold == "decision"):
            return "answer"
        return self._setup.hold

    async def _begin(
        self, asked: ParsedHybridRequest, hold: HoldPolicy, started: float
    ) -> HybridAnswer:
        # Where pieces of a cloud are shown at once, what broke off is not begun again.
        on_break: OnBreak = "incomplete" if hold == "decision" else "restart"

        prefer = asked.routing.prefer

        def prepare(loaded: LoadedModel) -> PreparedHybridAnswer:
            ask, verdict = asked.prepare(loaded.model.runtime)
            ask = replace(ask, sequences=loaded.sequences, on_break=on_break)
            return PreparedHybridAnswer(self._setup.client(asked.model, loaded.model), ask, verdict)

        def make(loaded: LoadedModel, prepared: PreparedHybridAnswer) -> HybridAnswer:
            return HybridAnswer(loaded, prepared, prefer, started)

        return await self._service.begin(asked.model, started, prepare, make)

    async def _stream(self, streamed: StreamedAnswer, send: Send) -> None:
        async with aclosing(_buffered_events(streamed)) as shown:
            # Nothing is sent before the first: until then an error has a status, and most often it
            # is known by then who answers.
            first = await anext(shown, None)
            told = _headers(streamed)
            await send_stream(self._events(streamed, first, shown), send, told)

    async def _events(
        self, streamed: StreamedAnswer, first: HybridEvent | None, shown: AsyncIterator[HybridEvent]
    ) -> AsyncIterator[bytes]:
        work, shape, asked = streamed.work, streamed.shape, streamed.asked
        reader = asked.reader()
        try:
            yield sse_event(shape.opening())
            async for event in _with_first_answering(first, shown):
                if isinstance(event, Restart):
                    reader = asked.reader()
                    yield sse_event(shape.restart(event.reason))
                elif isinstance(event, ReasoningDelta):
                    yield sse_event(shape.thought(event.text))
                else:
                    # What a cloud says in words is never a call.
                    said: list[AnswerPart] = [event.text]
                    for part in reader.feed(event.text) if event.route == "local" else said:
                        for chunk in shape.said(part):
                            yield sse_event(chunk)
            reply = _finished_reply(work)
        except Exception as error:
            yield sse_event(api_error(error, _PARAM).body())
            return
        for part in reader.rest() if reply.route == "local" else _calls(reply):
            for chunk in shape.said(part):
                yield sse_event(chunk)
        yield sse_event(shape.closing(reply))
        if asked.wants_usage:
            yield sse_event(shape.usage_chunk(reply))
        yield DONE


def _parts(reply: HybridReply, asked: ParsedHybridRequest) -> list[AnswerPart]:
    if reply.route == "cloud":
        return [reply.text, *_calls(reply)]
    reader = asked.reader()
    return [*reader.feed(reply.text), *reader.rest()]


def _calls(reply: HybridReply) -> list[AnswerPart]:
    """The calls of a cloud's answer."""
    return [
        CheckedCall(call.name, json.dumps(call.arguments, ensure_ascii=False), call.id)
        for call in reply.tool_calls
    ]


async def _buffered_events(streamed: StreamedAnswer) -> AsyncGenerator[HybridEvent, None]:
    holding = streamed.holding
    async with aclosing(streamed.work.events()) as events:
        async for event in events:
            for one in holding.feed(event):
                yield one
    for one in holding.rest():
        yield one


def _headers(streamed: StreamedAnswer) -> dict[str, str]:
    """Of a stream whose first event, if it has any, was shown."""
    work, holding = streamed.work, streamed.holding
    if work.reply is not None:
        return routing_headers(work.reply.route, work.reply.reason)
    if holding.route == "local" and work.others:
        return routing_headers(_UNDECIDED, None)
    return routing_headers(holding.route or "local", holding.reason)


def _finished_reply(work: HybridAnswer) -> HybridReply:
    if work.reply is None:
        raise shutting_down()
    return work.reply


async def _with_first_answering(
    first: HybridEvent | None, rest: AsyncIterator[HybridEvent]
) -> AsyncIterator[HybridEvent]:
    if first is not None:
        yield first
        async for event in rest:
            yield event
