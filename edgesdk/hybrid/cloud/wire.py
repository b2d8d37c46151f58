"""Reads what an OpenAI-compatible endpoint sends: server-sent events, their chunks, whole replies.

OpenAI's API reference, "Chat completion chunk", and what other endpoints make of it. A field of
another type than expected counts as absent: what matters is whether the reply came to its end.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import httpx
from httpx_sse import EventSource

# A line of a chat completion is a few kilobytes; an endless one is an attack or an accident.
MAX_EVENT_BYTES = 4 * 2**20
# A reply of a million tokens has about 4 MB of text, and up to a hundred times that around it.
MAX_REPLY_BYTES = 2**29
_MAX_COUNT = 10**9
_BLANK = b" \t\r\n"

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter"]
# As endpoints write them, in lower case. What is not here ends a reply like "stop".
_FINISH_REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "tool_calls": "tool_calls",
    "tool_call": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "prohibited_content": "content_filter",
    "sensitive": "content_filter",
    "refusal": "content_filter",
}
# The endpoint says that it failed under way.
_FAILURES = (
    "error", "abort", "aborted", "cancelled", "canceled", "timeout", "network_error",
    "insufficient_system_resource", "malformed_function_call",
)  # fmt: skip


class InvalidChunk(ValueError):
    """What came is damaged. Never leaves the SDK."""


class InBandError(Exception):
    """The endpoint sent an error where a chunk should be. Never leaves the SDK.

    Attributes:
        body: the JSON that it sent.
    """

    def __init__(self, body: Any) -> None:
        super().__init__("it sent an error instead of the rest")
        self.body = body


@dataclass(frozen=True)
class Usage:
    """Tokens that the endpoint counted; at least 0 each."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of a call.

    Attributes:
        index: which call it belongs to; None where the endpoint does not say.
        arguments: a part of their JSON text.
    """

    index: int | None
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChunkDelta:
    """What one chunk adds to the reply."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None

    @property
    def empty(self) -> bool:
        """Whether it adds nothing to the reply."""
        return not (self.text or self.reasoning or self.calls)


END = "[DONE]"


async def read_events(body: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """Yield the data of each whole event in `body`; an unfinished last event is dropped.

    A whole reply in JSON, which some endpoints send in place of a stream, is one event, and `END`
    is the next. The content type is not asked: gateways get it wrong.

    Raises:
        InvalidChunk: it is empty or a page of HTML, an event is too long or no UTF-8, or there is
            no end to them.
    """
    stream = _CheckedBytes(body)
    beginning = await stream.look_ahead()
    if beginning[:1] in (b"{", b"["):
        yield b"".join([data async for data in stream]).decode("utf-8", "replace")
        yield END
        return
    if not beginning or beginning.startswith(b"<"):
        raise InvalidChunk("it sent a page of HTML" if beginning else "it sent nothing")
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=stream)
    async with aclosing(EventSource(response).aiter_sse()) as events:
        async for event in events:
            stream.pending = 0
            # Comments that keep the connection open are events without data.
            if event.data:
                yield event.data


class _CheckedBytes(httpx.AsyncByteStream):
    """Checks the bytes of a response, which httpx-sse does not, and drops the mark before them.

    Attributes:
        pending: how many came since the last event; whoever reads events sets it to 0.
    """

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self.pending = 0
        self._beginning = b""
        self._bytes = self._check(body)

    async def look_ahead(self) -> bytes:
        """Return how the response begins, blanks left out; the iteration begins with it too."""
        async for data in self._bytes:
            self._beginning = (self._beginning + data).lstrip(_BLANK)
            if self._beginning:
                break
        return self._beginning

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._beginning
        async for data in self._bytes:
            yield data

    async def _check(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        total = 0
        async for data in body:
            total += len(data)
            self.pending += len(data)
            if self.pending > MAX_EVENT_BYTES:
                raise InvalidChunk("it sent an event without an end")
            if total > MAX_REPLY_BYTES:
                raise InvalidChunk("it sent a reply without an end")
            try:
                yield decoder.decode(data).encode()
            except UnicodeDecodeError as error:
                # The events before it are whole.
                yield bytes(error.object[: error.start])
                raise InvalidChunk("it sent bytes that are no UTF-8") from None


def parse_chunk(data: str, *, whole: bool = False) -> ChunkDelta:
    """Parse the data of one event.

    Args:
        whole: it may be a whole reply as well, which some endpoints send in place of chunks; others
            send it again after the chunks.

    Raises:
        InvalidChunk: it is not JSON, no object, or says that the reply failed.
        InBandError: it is an error that was sent as a chunk.
    """
    found = parse_json(data)
    if isinstance(found, list) and len(found) == 1:
        # Gemini wraps errors so.
        (found,) = found
    if not isinstance(found, dict):
        raise InvalidChunk(f"it sent {data[:80]!r} where a chunk should be")
    if found.get("error") or "error" in (found.get("object"), found.get("type")):
        raise InBandError(found)
    choice = next((one for one in _objects(found.get("choices")) if not one.get("index")), {})
    groq = found.get("x_groq")
    # Moonshot counts in the choice, Groq in a field of its own.
    counted = found.get("usage") or choice.get("usage") or (_object(groq).get("usage"))
    delta = _object(choice.get("delta") or (choice.get("message") if whole else None))
    text, thought = _content(delta.get("content"))
    # DeepSeek and vLLM use the first name, OpenRouter and others the second.
    reasoning = next(
        (word for name in ("reasoning_content", "reasoning") if (word := _text(delta.get(name)))),
        "",
    )
    return ChunkDelta(
        text=text + _text(delta.get("refusal")),
        reasoning=reasoning + thought,
        calls=tuple(_calls(delta)),
        finish_reason=_finish_reason(choice.get("finish_reason")),
        usage=_usage(_object(counted)),
    )


def parse_json(text: str, *, strict: bool = False) -> Any:
    """Parse JSON that others wrote.

    Args:
        strict: refuse NaN and infinite numbers, which JSON does not know; else they become None.
    """

    def number(written: str) -> float | None:
        value = float(written)
        if math.isfinite(value):
            return value
        if strict:
            raise ValueError("no number of JSON")
        return None

    try:
        return json.loads(text, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError):
        raise InvalidChunk(f"it sent {text[:80]!r} where JSON should be") from None


def _calls(delta: Mapping[str, Any]) -> Iterator[ToolCallDelta]:
    for call in _objects(delta.get("tool_calls")):
        index = call.get("index")
        yield _call(
            index if type(index) is int else None, _text(call.get("id")), call.get("function")
        )
    # The form before there were several calls.
    if isinstance(function := delta.get("function_call"), dict):
        yield _call(0, "", function)


def _call(index: int | None, id_: str, function: Any) -> ToolCallDelta:
    function = _object(function)
    arguments = function.get("arguments")
    written = json.dumps(arguments) if isinstance(arguments, dict) else _text(arguments)
    return ToolCallDelta(index, id_, _text(function.get("name")), written)


def _content(content: Any) -> tuple[str, str]:
    """Return the text and the reasoning of a content: a text, or a list of parts."""
    if isinstance(content, str):
        return content, ""
    text = thought = ""
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            text += part
        elif isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"):
            # Mistral writes its thinking as parts again.
            inner = part.get("thinking", part.get("reasoning", part.get("text")))
            thought += "".join(_content(inner))
        elif isinstance(part, dict):
            text += _text(part.get("text"))
    return text, thought


def _finish_reason(value: Any) -> FinishReason | None:
    if not isinstance(value, str) or not value.strip():
        return None
    word = value.strip().lower()
    if word in _FAILURES:
        raise InvalidChunk(f"it ended its reply with {value[:40]!r}")
    return _FINISH_REASONS.get(word, "stop")


def _usage(counted: Mapping[str, Any]) -> Usage | None:
    """Read a count; None unless it tells both, because a budget relies on it."""
    prompt, completion = _count(counted, "prompt_tokens"), _count(counted, "completion_tokens")
    total = _count(counted, "total_tokens")
    if prompt is not None and completion is None and total is not None and total >= prompt:
        completion = total - prompt
    return None if prompt is None or completion is None else Usage(prompt, completion)


def _count(counted: Mapping[str, Any], name: str) -> int | None:
    value = counted.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return math.ceil(value) if 0 <= value <= _MAX_COUNT else None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
