"""Reads what an OpenAI-compatible endpoint streams: server-sent events and their chunks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

# A line of a chat completion is a few kilobytes; an endless one is an attack or an accident.
MAX_EVENT_BYTES = 4 * 2**20


class EventTooLong(ValueError):
    """A line or an event went past `MAX_EVENT_BYTES`. Never leaves the SDK."""


class EventReader:
    """Gives the data of each whole event; what is not finished by an empty line is none."""

    def __init__(self) -> None:
        self._bytes = b""
        self._lines: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """The data of events that `data` completes.

        Raises:
            EventTooLong: an event is too long.
            UnicodeDecodeError: a line is no UTF-8.
        """
        whole = self._bytes + data
        # A carriage return at the end may be half of a line break.
        held = b"\r" if whole.endswith(b"\r") else b""
        *lines, rest = (
            whole[: len(whole) - len(held)]
            .replace(b"\r\n", b"\n")
            .replace(b"\r", b"\n")
            .split(b"\n")
        )
        self._bytes = rest + held
        for line in lines:
            yield from self._line(line.decode("utf-8"))
        if self._size + len(self._bytes) > MAX_EVENT_BYTES:
            raise EventTooLong

    def _line(self, line: str) -> Iterator[str]:
        if line == "":
            if self._lines:
                yield "\n".join(self._lines)
            self._lines, self._size = [], 0
            return
        name, _, value = line.partition(":")
        if name == "data":
            self._lines.append(value.removeprefix(" "))
            self._size += len(value)


class InvalidChunk(ValueError):
    """A chunk that is none, or that carries an error. Never leaves the SDK."""


@dataclass(frozen=True)
class Usage:
    """Tokens that the endpoint counted."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class WireToolCall:
    """A call of a tool. `arguments` is the JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of the call number `index`."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChunkDelta:
    """What one chunk adds."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None

    @property
    def empty(self) -> bool:
        """Whether it adds nothing to the answer."""
        return not (self.text or self.reasoning or self.calls)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Function(_Part):
    name: str | None = None
    arguments: str | None = None


class _Call(_Part):
    index: int = 0
    id: str | None = None
    function: _Function = Field(default_factory=_Function)


class _Delta(_Part):
    content: str | None = None
    # DeepSeek and vLLM use the first name, OpenRouter and others the second.
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


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


def parse_chunk(data: str) -> ChunkDelta:
    """The chunk in the data of one event.

    Raises:
        InvalidChunk: it is not JSON, not a chunk, or an error that was sent as one.
    """
    try:
        found = json.loads(data)
    except ValueError:
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
    """The message of an error body in one of the shapes that are about."""
    error = body.get("error") if isinstance(body, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    if not isinstance(text, str):
        text = json.dumps(body)
    return " ".join(text.split())[:300]


class ToolCallAssembly:
    """Whole calls out of pieces, in the order of their numbers."""

    def __init__(self) -> None:
        self._calls: dict[int, WireToolCall] = {}

    def add(self, piece: ToolCallDelta) -> None:
        """Raises InvalidChunk where a piece belongs to another call than the number says."""
        known = self._calls.get(piece.index)
        if known is None:
            if not piece.name:
                raise InvalidChunk(f"tool call {piece.index} has no name")
            self._calls[piece.index] = WireToolCall(piece.id, piece.name, piece.arguments)
            return
        if piece.id and piece.id != known.id:
            raise InvalidChunk(f"tool call {piece.index} changed its id on the way")
        self._calls[piece.index] = WireToolCall(
            known.id, known.name, known.arguments + piece.arguments
        )

    def whole(self) -> tuple[WireToolCall, ...]:
        """All calls.

        Raises:
            InvalidChunk: the arguments of one are no JSON object.
        """
        calls = tuple(call for _, call in sorted(self._calls.items()))
        for call in calls:
            try:
                arguments = json.loads(call.arguments or "{}")
            except ValueError:
                arguments = None
            if not isinstance(arguments, dict):
                raise InvalidChunk(f"the arguments of its call of {call.name} are no JSON object")
        return calls
