"""Reads what an OpenAI-compatible endpoint streams: server-sent events and their chunks.

OpenAI's API reference, "Chat completion chunk".
"""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import httpx
from httpx_sse import EventSource
from pydantic import BaseModel, ConfigDict, Field, ValidationError

# A line of a chat completion is a few kilobytes; an endless one is an attack or an accident.
MAX_EVENT_BYTES = 4 * 2**20


class InvalidChunk(ValueError):
    """The stream is damaged, or carries an error. Never leaves the SDK."""


@dataclass(frozen=True)
class Usage:
    """Tokens that the endpoint counted."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of the call number `index`; `arguments` is a part of their JSON text."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChunkDelta:
    """What one chunk adds to the reply."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None

    @property
    def empty(self) -> bool:
        """Whether it adds nothing to the reply."""
        return not (self.text or self.reasoning or self.calls)


async def read_events(body: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """Yield the data of each whole event in `body`; an unfinished last event is dropped.

    Raises:
        InvalidChunk: an event is too long, or no UTF-8.
    """
    stream = _EventBytes(body)
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=stream)
    async with aclosing(EventSource(response).aiter_sse()) as events:
        async for event in events:
            stream.pending = 0
            # Comments that keep the connection open are events without data.
            if event.data:
                yield event.data


class _EventBytes(httpx.AsyncByteStream):
    """Checks the bytes of an event stream, which httpx-sse does not.

    Attributes:
        pending: how many came since the last event; whoever reads events sets it to 0.
    """

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self.pending = 0
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        async for data in self._body:
            self.pending += len(data)
            if self.pending > MAX_EVENT_BYTES:
                raise InvalidChunk("it sent an event without an end")
            try:
                decoder.decode(data)
            except UnicodeDecodeError:
                raise InvalidChunk("it sent bytes that are no UTF-8") from None
            yield data


def parse_chunk(data: str) -> ChunkDelta:
    """Parse the data of one event.

    Raises:
        InvalidChunk: it is not JSON, not a chunk, or an error that was sent as one.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidChunk(f"it sent {data[:80]!r} where a chunk should be") from None
    if isinstance(found, dict) and found.get("error"):
        raise InvalidChunk(f"it sent an error instead of the rest: {error_text(found)}")
    try:
        chunk = _Chunk.model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InvalidChunk(f"it sent a chunk that is wrong at {where or 'its top'}") from None
    counted = chunk.usage
    usage = Usage(counted.prompt_tokens, counted.completion_tokens) if counted else None
    choice = next((one for one in chunk.choices if one.index == 0), None)
    if choice is None:
        return ChunkDelta(usage=usage)
    delta = choice.delta or _Delta()
    return ChunkDelta(
        text=(delta.content or "") + (delta.refusal or ""),
        reasoning=delta.reasoning_content or delta.reasoning or "",
        calls=tuple(
            ToolCallDelta(
                call.index, call.id or "", call.function.name or "", call.function.arguments or ""
            )
            for call in delta.tool_calls or ()
        ),
        finish_reason=choice.finish_reason,
        usage=usage,
    )


def error_text(body: object) -> str:
    """Return the message of an error body, in any of its common shapes."""
    error = body.get("error") if isinstance(body, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    if not isinstance(text, str):
        text = json.dumps(body)
    return " ".join(text.split())[:300]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Function(_Part):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(_Part):
    index: int = 0
    id: str | None = None
    function: _Function = Field(default_factory=_Function)


class _Delta(_Part):
    content: str | None = None
    # DeepSeek and vLLM use the first name, OpenRouter and others the second.
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(_Part):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(_Part):
    prompt_tokens: int
    completion_tokens: int = 0


class _Chunk(_Part):
    choices: list[_Choice]
    usage: _Usage | None = None
