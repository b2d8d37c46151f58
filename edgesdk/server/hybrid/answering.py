"""The chat path of a hybrid server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from edgesdk.hybrid.cloud.answer import Restart, Thought
from edgesdk.hybrid.cloud.attempts import OnBreak
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.stream import HybridEvent
from edgesdk.server.answering import (
    DONE,
    api_error,
    attended,
    event_of,
    give,
    send_error,
    send_stream,
)
from edgesdk.server.asking import Asked
from edgesdk.server.calling import Part
from edgesdk.server.failures import stopping
from edgesdk.server.hybrid.asking import HybridAsked, ask_hybrid
from edgesdk.server.hybrid.holding import Holding
from edgesdk.server.hybrid.setup import Hold, HybridSetup
from edgesdk.server.hybrid.wording import HybridShape, headers_of
from edgesdk.server.hybrid.work import HybridWork, Prepared
from edgesdk.server.service import Service
from edgesdk.server.shapes import Stamp
from edgesdk.server.shelf import Resident
from edgesdk.server.tooling import Called

_PARAM = "messages"
# What a stream says in its headers where another may still answer.
_UNDECIDED = "undecided"


@dataclass(frozen=True)
class Streamed:
    """An answer that goes out piece by piece."""

    work: HybridWork
    shape: HybridShape
    asked: HybridAsked
    holding: Holding


class HybridAnswering:
    """ASGI application of `/v1/chat/completions` where a cloud may answer too.

    A client that goes away cancels its answer, on the device and in the cloud.
    """

    def __init__(self, service: Service, setup: HybridSetup) -> None:
        self._service = service
        self._setup = setup

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._service.settings.body_limit
        await attended(scope, receive, send, limit, self._answer)

    async def _answer(
        self, body: bytes, started: float, scope: Scope, receive: Receive, send: Send
    ) -> None:
        try:
            service, policy = self._service, self._setup.policy
            headers = Headers(scope=scope)
            asked = await service.in_thread(
                lambda: ask_hybrid(body, headers, service.settings, policy, started)
            )
            if isinstance(asked, Asked):
                await give(service, asked, scope, receive, send)
                return
            hold = self._hold(asked)
            work = await self._begin(asked, hold, started)
            stamp = Stamp(
                model=asked.model,
                engine=None if work.others else work.resident.model.info.name,
                tokenizer=work.resident.model.runtime.encoder.tokenizer,
                logprobs=False,
                usage_follows=asked.wants_usage,
            )
            shape = HybridShape(stamp, may_call=asked.may_call)
            try:
                if asked.stream:
                    holding = Holding(hold if work.others else "nothing")
                    await self._stream(Streamed(work, shape, asked, holding), send)
                    return
                async with aclosing(work.events()) as events:
                    async for _ in events:
                        pass
            finally:
                work.cancel()
            reply = _reply_of(work)
            parts = _parts(reply, asked)
            told = headers_of(reply.route, reply.reason)
            await JSONResponse(shape.whole(reply, parts), headers=told)(scope, receive, send)
        except Exception as error:
            await send_error(error, _PARAM, scope, receive, send)

    def _hold(self, asked: HybridAsked) -> Hold:
        if not asked.stream or (asked.whole and self._setup.hold == "decision"):
            return "answer"
        return self._setup.hold

    async def _begin(self, asked: HybridAsked, hold: Hold, started: float) -> HybridWork:
        # Where pieces of a cloud are shown at once, what broke off is not begun again.
        on_break: OnBreak = "incomplete" if hold == "decision" else "restart"

        prefer = asked.routing.prefer

        def prepare(resident: Resident) -> Prepared:
            ask, verdict = asked.prepare(resident.model.runtime)
            ask = replace(ask, sequences=resident.sequences, on_break=on_break)
            return Prepared(self._setup.client(asked.model, resident.model), ask, verdict)

        def make(resident: Resident, prepared: Prepared) -> HybridWork:
            return HybridWork(resident, prepared, prefer, started)

        return await self._service.begin(asked.model, started, prepare, make)

    async def _stream(self, streamed: Streamed, send: Send) -> None:
        async with aclosing(_shown(streamed)) as shown:
            # Nothing is sent before the first: until then an error has a status, and most often it
            # is known by then who answers.
            first = await anext(shown, None)
            told = _headers(streamed)
            await send_stream(self._events(streamed, first, shown), send, told)

    async def _events(
        self, streamed: Streamed, first: HybridEvent | None, shown: AsyncIterator[HybridEvent]
    ) -> AsyncIterator[bytes]:
        work, shape, asked = streamed.work, streamed.shape, streamed.asked
        reader = asked.reader()
        try:
            yield event_of(shape.opening())
            async for event in _with_first(first, shown):
                if isinstance(event, Restart):
                    reader = asked.reader()
                    yield event_of(shape.restart(event.reason))
                elif isinstance(event, Thought):
                    yield event_of(shape.thought(event.text))
                else:
                    # What a cloud says in words is never a call.
                    said: list[Part] = [event.text]
                    for part in reader.feed(event.text) if event.route == "local" else said:
                        for chunk in shape.said(part):
                            yield event_of(chunk)
            reply = _reply_of(work)
        except Exception as error:
            yield event_of(api_error(error, _PARAM).body())
            return
        for part in reader.rest() if reply.route == "local" else _calls(reply):
            for chunk in shape.said(part):
                yield event_of(chunk)
        yield event_of(shape.closing(reply))
        if asked.wants_usage:
            yield event_of(shape.usage_chunk(reply))
        yield DONE


def _parts(reply: HybridReply, asked: HybridAsked) -> list[Part]:
    if reply.route == "cloud":
        return [reply.text, *_calls(reply)]
    reader = asked.reader()
    return [*reader.feed(reply.text), *reader.rest()]


def _calls(reply: HybridReply) -> list[Part]:
    """The calls of a cloud's answer."""
    return [
        Called(call.name, json.dumps(call.arguments, ensure_ascii=False), call.id)
        for call in reply.tool_calls
    ]


async def _shown(streamed: Streamed) -> AsyncGenerator[HybridEvent, None]:
    holding = streamed.holding
    async with aclosing(streamed.work.events()) as events:
        async for event in events:
            for one in holding.feed(event):
                yield one
    for one in holding.rest():
        yield one


def _headers(streamed: Streamed) -> dict[str, str]:
    """Of a stream whose first event, if it has any, was shown."""
    work, holding = streamed.work, streamed.holding
    if work.reply is not None:
        return headers_of(work.reply.route, work.reply.reason)
    if holding.route == "local" and work.others:
        return headers_of(_UNDECIDED, None)
    return headers_of(holding.route or "local", holding.reason)


def _reply_of(work: HybridWork) -> HybridReply:
    if work.reply is None:
        raise stopping()
    return work.reply


async def _with_first(
    first: HybridEvent | None, rest: AsyncIterator[HybridEvent]
) -> AsyncIterator[HybridEvent]:
    if first is not None:
        yield first
        async for event in rest:
            yield event
