"""An endpoint that answers: read the body, wait, and send JSON or a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgesdk.generation.loop import Step
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.reply import ReasoningDelta
from edgesdk.server.answers import AnswerEvent, AnswerSource, RunningAnswer
from edgesdk.server.api_errors import ApiError, api_error, deadline_passed, shutting_down
from edgesdk.server.callable_tools import AnswerReader
from edgesdk.server.dialects.wire_formats import wire_format_of
from edgesdk.server.event_stream import EventStream
from edgesdk.server.model_pool import LoadedModel
from edgesdk.server.request_body import read_body
from edgesdk.server.request_parsing import ParsedRequest
from edgesdk.server.responses import (
    AnswerReply,
    Json,
    ResponseBuilder,
    ResponseMetadata,
    ResponsePart,
    merged,
    reply_headers,
    routing_headers,
)
from edgesdk.server.service import Service
from edgesdk.server.stream_buffer import StreamBuffer
from edgesdk.tools.calls import ToolCall

Prepare: TypeAlias = Callable[[LoadedModel], AnswerSource]
_Result = TypeVar("_Result")


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
            body = await read_body(scope, receive, self._service.settings.body_limit)
        except ClientDisconnect:
            return
        except ApiError as error:
            await wire_format_of(scope["path"]).error_response(error)(scope, receive, send)
            return
        stream = EventStream(scope, send)
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            group.start_soon(stream.keep_alive)
            await self._answer(body, started, scope, receive, stream)
            group.cancel_scope.cancel()

    async def _answer(
        self, body: bytes, started: float, scope: Scope, receive: Receive, stream: EventStream
    ) -> None:
        param = "messages"
        try:
            # In a thread: a schema can take a while to compile.
            parsed = await self._service.in_thread(
                lambda: self._parse(body, Headers(scope=scope), started)
            )
            param = parsed.param
            if parsed.stream:
                stream.allow_pings()
            if parsed.stream and parsed.others:
                await self._send_streams(parsed, started, stream)
            elif parsed.stream:
                await self._send_stream(parsed, started, stream)
            else:
                whole, headers = await self._whole(parsed, started)
                await stream.send_response(JSONResponse(whole, headers=headers), receive)
        except Exception as error:
            await stream.send_error(api_error(error, param), receive)

    async def _whole(self, parsed: ParsedRequest, started: float) -> tuple[Json, dict[str, str]]:
        """The body and the headers of a response that is sent as a whole."""
        wholes = await gathered(
            [
                partial(self._whole_answer, parsed, prepare, index, started)
                for index, prepare in enumerate((parsed.prepare, *parsed.others))
            ],
            limit=self._service.settings.parallel,
        )
        body = merged([body for body, _ in wholes], per_prompt=parsed.per_prompt)
        return body, reply_headers(wholes[0][1])

    async def _whole_answer(
        self, parsed: ParsedRequest, prepare: Prepare, index: int, started: float
    ) -> tuple[Json, AnswerReply]:
        async with self._started(parsed, prepare, started) as answer:
            steps = [event async for event in answer.events if isinstance(event, Step)]
        reply = _finished_reply(answer)
        parts = _all_parts(reply, parsed.reader(answer.loaded))
        self._count_calls(answer, parts)
        builder = parsed.builder(_metadata(parsed, answer, index))
        return builder.complete(steps, parts, reply), reply

    @asynccontextmanager
    async def _started(
        self, parsed: ParsedRequest, prepare: Prepare, started: float
    ) -> AsyncIterator[RunningAnswer]:
        answer = await self._service.start(
            parsed.model, started, prepare, keep_alive=parsed.keep_alive
        )
        try:
            yield answer
        finally:
            answer.cancel()

    async def _send_stream(
        self, parsed: ParsedRequest, started: float, stream: EventStream
    ) -> None:
        async with self._started(parsed, parsed.prepare, started) as answer:
            builder = parsed.builder(_metadata(parsed, answer))
            stream.error_chunk = builder.error_chunk
            buffer = StreamBuffer(parsed.hold if answer.source.may_withdraw else "nothing")
            async with aclosing(_buffered(answer, buffer)) as events:
                # Nothing is sent before the first event: until then an error has a status, and most
                # often it is known by then who answers.
                first = await anext(events, None)
                chunks = self._chunks(parsed, answer, builder, _with_first(first, events))
                await stream.start(_stream_headers(parsed, answer, buffer))
                await stream.send_all(chunks)
                usage = builder.usage_chunk(_finished_reply(answer))
                if usage is not None:
                    await stream.send(usage)
                await stream.send_end()

    async def _send_streams(
        self, parsed: ParsedRequest, started: float, stream: EventStream
    ) -> None:
        """Send several answers at once, each of whose chunks has its index."""
        usage: dict[int, Json] = {}

        async def send(prepare: Prepare, index: int) -> None:
            async with self._started(parsed, prepare, started) as answer:
                builder = parsed.builder(_metadata(parsed, answer, index))
                events = _buffered(answer, StreamBuffer("nothing"))
                await stream.send_all(self._chunks(parsed, answer, builder, events))
                counted = builder.usage_chunk(_finished_reply(answer))
                if counted is not None:
                    usage[index] = counted

        await gathered(
            [
                partial(send, prepare, index)
                for index, prepare in enumerate((parsed.prepare, *parsed.others))
            ],
            limit=self._service.settings.parallel,
        )
        if usage:
            chunks = [usage[index] for index in sorted(usage)]
            await stream.send(merged(chunks, per_prompt=parsed.per_prompt))
        await stream.send_end()

    async def _chunks(
        self,
        parsed: ParsedRequest,
        answer: RunningAnswer,
        builder: ResponseBuilder,
        events: AsyncIterator[AnswerEvent],
    ) -> AsyncIterator[Json]:
        """The chunks of one answer, but for its usage."""
        reader = parsed.reader(answer.loaded)
        steps: list[Step] = []
        for chunk in builder.first_chunks():
            yield chunk
        async for event in events:
            if isinstance(event, Restart):
                reader = parsed.reader(answer.loaded)
            if isinstance(event, Step):
                steps.append(event)
            parts = _parts_of(event, reader)
            self._count_calls(answer, parts)
            for part in parts:
                for chunk in builder.part_chunks(part, steps):
                    yield chunk
                steps = []
        reply = _finished_reply(answer)
        local = reply.receipt.route == "local"
        parts = [*reader.flush(cut=_is_cut(reply))] if local else [*reply.tool_calls]
        self._count_calls(answer, parts)
        if steps and not parts and parsed.logprobs:
            parts = [""]
        for part in parts:
            for chunk in builder.part_chunks(part, steps):
                yield chunk
            steps = []
        for chunk in builder.last_chunks(reply):
            yield chunk

    def _count_calls(self, answer: RunningAnswer, parts: list[ResponsePart]) -> None:
        calls = sum(isinstance(part, ToolCall) for part in parts)
        self._service.metrics.count_calls(answer.loaded.model_info.name, calls)


async def gathered(
    works: Sequence[Callable[[], Coroutine[Any, Any, _Result]]], *, limit: int
) -> list[_Result]:
    """What works return, of which so many run at once; the first error ends them all."""
    if len(works) == 1:
        return [await works[0]()]
    slots = asyncio.Semaphore(limit)

    async def run(work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        async with slots:
            return await work()

    tasks = [asyncio.create_task(run(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _is_cut(reply: AnswerReply) -> bool:
    return reply.finish_reason not in ("stop", "tool_calls")


def _parts_of(event: AnswerEvent, reader: AnswerReader) -> list[ResponsePart]:
    """What of an answer is certain after one more event."""
    if isinstance(event, Step):
        thought = [ReasoningDelta(event.reasoning, "local")] if event.reasoning else []
        return [*thought, *reader.feed(event.text)]
    if isinstance(event, TextDelta):
        # What a cloud says in words is never a call.
        return [*reader.feed(event.text)] if event.route == "local" else [event.text]
    return [event]


def _all_parts(reply: AnswerReply, reader: AnswerReader) -> list[ResponsePart]:
    if reply.receipt.route == "cloud":
        return [reply.text, *reply.tool_calls]
    return [*reader.feed(reply.text), *reader.flush(cut=_is_cut(reply))]


def _metadata(parsed: ParsedRequest, answer: RunningAnswer, index: int = 0) -> ResponseMetadata:
    model = answer.loaded.model
    return ResponseMetadata(
        model=parsed.model or answer.loaded.model_info.name,
        engine=None if answer.source.may_withdraw else model.info.name,
        tokenizer=model.runtime.encoder.tokenizer,
        prompt_tokens=answer.source.prompt_tokens,
        logprobs=parsed.logprobs,
        may_call=parsed.may_call,
        usage_follows=parsed.wants_usage,
        index=index,
        key=parsed.key,
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
