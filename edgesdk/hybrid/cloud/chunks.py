"""Chunks of a streamed chat completion: OpenAI's API reference, "Chat completion chunk"."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class BadChunk(ValueError):
    """A chunk that is none, or that carries an error. Never leaves the SDK."""


@dataclass(frozen=True)
class Usage:
    """Tokens that the endpoint counted."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class CloudCall:
    """A call of a tool. `arguments` is the JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class CallPiece:
    """A part of the call number `index`."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Delta:
    """What one chunk adds."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
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


def parse_chunk(data: str) -> Delta:
    """The chunk in the data of one event.

    Raises:
        BadChunk: it is not JSON, not a chunk, or an error that was sent as one.
    """
    try:
        found = json.loads(data)
    except ValueError:
        raise BadChunk(f"it sent {data[:80]!r} where a chunk should be") from None
    if isinstance(found, dict) and found.get("error"):
        raise BadChunk(f"it sent an error instead of the rest: {error_text(found)}")
    try:
        chunk = _Chunk.model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BadChunk(f"it sent a chunk that is wrong at {where or 'its top'}") from None
    counted = chunk.usage
    usage = Usage(counted.prompt_tokens, counted.completion_tokens) if counted else None
    choice = next((one for one in chunk.choices if one.index == 0), None)
    if choice is None:
        return Delta(usage=usage)
    delta = choice.delta or _Delta()
    return Delta(
        text=(delta.content or "") + (delta.refusal or ""),
        reasoning=delta.reasoning_content or delta.reasoning or "",
        calls=tuple(
            CallPiece(
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


class CallAssembly:
    """Whole calls out of pieces, in the order of their numbers."""

    def __init__(self) -> None:
        self._calls: dict[int, CloudCall] = {}

    def add(self, piece: CallPiece) -> None:
        """Raises BadChunk where a piece belongs to another call than the number says."""
        known = self._calls.get(piece.index)
        if known is None:
            if not piece.name:
                raise BadChunk(f"tool call {piece.index} has no name")
            self._calls[piece.index] = CloudCall(piece.id, piece.name, piece.arguments)
            return
        if piece.id and piece.id != known.id:
            raise BadChunk(f"tool call {piece.index} changed its id on the way")
        self._calls[piece.index] = CloudCall(
            known.id, known.name, known.arguments + piece.arguments
        )

    def whole(self) -> tuple[CloudCall, ...]:
        """All calls.

        Raises:
            BadChunk: the arguments of one are no JSON object.
        """
        calls = tuple(call for _, call in sorted(self._calls.items()))
        for call in calls:
            try:
                arguments = json.loads(call.arguments or "{}")
            except ValueError:
                arguments = None
            if not isinstance(arguments, dict):
                raise BadChunk(f"the arguments of its call of {call.name} are no JSON object")
        return calls
