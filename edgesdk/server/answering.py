"""The two paths that answer: read the body, wait, and send JSON or a stream of events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from time import perf_counter

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgesdk.decode.loop import Finish, Step
from edgesdk.errors import EdgeError
from edgesdk.server.asking import Asked
from edgesdk.server.calling import Part
from edgesdk.server.failures import ApiError, stopping, told, too_late
from edgesdk.server.service import Answer, Service
from edgesdk.server.settings import ServerSettings
from edgesdk.server.shapes import Json, Shape
from edgesdk.server.tooling import Called

_BODY_SECONDS = 30.0
# A client hears of a refusal only after it has sent its body, so that much of one is read.
_READ_ANYWAY = 16
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = b"data: [DONE]\n\n"
_log = logging.getLogger("edgesdk.server")


class Answering:
    """ASGI application of one path.

    A client that goes away cancels whatever its request is at: waiting, prefill or decode.
    """

    def __init__(
        self, service: Service, ask: Callable[[bytes, ServerSettings, float], Asked]
    ) -> None:
        self._service = service
        self._ask = ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._service.settings.body_limit
        await attended(scope, receive, send, limit, self._answer)

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
            await give(self._service, asked, scope, receive, send)


async def give(service: Service, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
    """Have a model of this server answer a request, within `attended`."""
    try:
        answer = await service.answer(asked.job)
        try:
            async with aclosing(answer.steps()) as steps:
                # Nothing is sent before the first step: until then an error has a status.
                first = await anext(steps, None)
                if first is None:
                    _finish_of(answer)
                shape = asked.shape_for(answer.resident.model)
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
    service: Service, answer: Answer, steps: AsyncIterator[Step], shape: Shape, asked: Asked
) -> AsyncIterator[bytes]:
    """The stream's events (server-sent events, as OpenAI uses them)."""
    for chunk in shape.opening():
        yield event_of(chunk)
    reader = asked.reader()
    held: list[Step] = []
    try:
        async for step in steps:
            held.append(step)
            parts = reader.feed(step.text)
            _count_calls(service, answer, parts)
            for part in parts:
                for chunk in shape.chunks(held, part):
                    yield event_of(chunk)
                held = []
        finish = _finish_of(answer)
    except Exception as error:
        yield event_of(api_error(error, asked.param).body())
        return
    parts = reader.rest()
    _count_calls(service, answer, parts)
    if held and not parts and asked.job.logprobs:
        parts = [""]
    for part in parts:
        for chunk in shape.chunks(held, part):
            yield event_of(chunk)
        held = []
    yield event_of(shape.closing(finish))
    if asked.wants_usage:
        yield event_of(shape.usage_chunk(finish))
    yield DONE


def _count_calls(service: Service, answer: Answer, parts: list[Part]) -> None:
    calls = sum(isinstance(part, Called) for part in parts)
    service.metrics.count_calls(answer.resident.offer.name, calls)


async def attended(
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
    with anyio.move_on_after(_BODY_SECONDS) as scope_of_time:
        async for part in Request(scope, receive).stream():
            size += len(part)
            if size <= limit:
                body += part
            elif size > _READ_ANYWAY * limit:
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


def event_of(content: Json) -> bytes:
    """An event with JSON."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()


def _finish_of(answer: Answer) -> Finish:
    """How an answer ended, where that is something to show."""
    finish = answer.finish
    assert finish is not None, "an answer whose steps ended without an error has a finish"
    if finish.reason == "cancelled":
        raise stopping()
    if finish.reason == "deadline" and not finish.tokens:
        raise too_late()
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
        return told(error, param=param)
    _log.error("An answer failed", exc_info=error)
    return ApiError(500, "The server failed; its log says more.", code="internal_error")
