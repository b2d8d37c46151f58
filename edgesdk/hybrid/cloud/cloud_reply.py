"""The events of a cloud's reply, and the reply that they add up to."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Literal

from edgesdk.hybrid.cloud.wire import (
    ChunkDelta,
    InvalidChunk,
    ToolCallDelta,
    Usage,
)
from edgesdk.tools.calls import ToolCall


@dataclass(frozen=True)
class TextDelta:
    """The reply goes on with `text`; `route` says who wrote it."""

    text: str
    route: Literal["local", "cloud"] = "cloud"


@dataclass(frozen=True)
class ReasoningDelta:
    """The model's reasoning goes on with `text`. It is no part of the reply."""

    text: str


@dataclass(frozen=True)
class Restart:
    """All text so far is void: the reply begins again, from another attempt."""

    reason: str


@dataclass(frozen=True)
class CloudReply:
    """A cloud's reply at its end.

    Attributes:
        finish_reason: the endpoint's own; "incomplete" where the connection failed under way,
            "deadline" where the time was over.
        calls: of tools; only a complete reply has any.
        usage: as the endpoint counted; None where it did not.
        endpoint: who gave it.
        attempts: how many requests were made for it.
    """

    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage | None
    endpoint: str
    attempts: int

    @property
    def num_bytes(self) -> int:
        """How much the endpoint wrote, as UTF-8: text, reasoning, and the arguments of calls."""
        written = [self.text, self.reasoning]
        written += [call.name + json.dumps(call.arguments) for call in self.calls]
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in written)

    @property
    def complete(self) -> bool:
        """Whether it is a whole answer: neither cut at a limit, nor filtered, nor broken off."""
        return self.finish_reason in ("stop", "tool_calls")

    @property
    def broke_off(self) -> bool:
        """Whether it ended without a word of the endpoint, so that another time may be better."""
        return self.finish_reason in ("incomplete", "deadline")


CloudEvent = TextDelta | ReasoningDelta | Restart | CloudReply


class ReplyAssembly:
    """Assembles the reply of one attempt from its chunks."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self._calls: dict[int, ToolCallDelta] = {}
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._chunks = 0
        self._last: ChunkDelta | None = None
        self._repeated = False

    @property
    def begun(self) -> bool:
        """Whether the caller has seen something of it."""
        return bool(self.text or self.reasoning)

    def add(self, delta: ChunkDelta) -> list[CloudEvent]:
        """Add one more chunk, and return its events.

        Raises:
            InvalidChunk: its tool calls do not fit those before.
        """
        self._usage = delta.usage or self._usage
        self._finish_reason = delta.finish_reason or self._finish_reason
        if not delta.empty:
            self._chunks += 1
            self._repeated = self._repeated or delta == self._last
            self._last = delta
        for call in delta.calls:
            self._add_call(call)
        self.text += delta.text
        self.reasoning += delta.reasoning
        events: list[CloudEvent] = []
        if delta.reasoning:
            events.append(ReasoningDelta(delta.reasoning))
        if delta.text:
            events.append(TextDelta(delta.text))
        return events

    def complete(self, endpoint: str, attempts: int) -> CloudReply:
        """Return the reply at the end of the stream.

        Raises:
            InvalidChunk: a chunk came twice, or the arguments of a call are no JSON object.
        """
        # The same token twice looks like the same chunk twice; the endpoint's own count tells.
        if self._repeated and self._usage and self._chunks > self._usage.completion_tokens:
            raise InvalidChunk("it sent a chunk twice")
        assert self._finish_reason is not None, "a stream ends with a finish"
        calls = tuple(_whole_call(call) for _, call in sorted(self._calls.items()))
        return CloudReply(
            self.text, self.reasoning, calls, self._finish_reason, self._usage, endpoint, attempts
        )

    def partial(self, reason: str, endpoint: str, attempts: int) -> CloudReply:
        """Return what there is, without tool calls: half a call is none."""
        return CloudReply(self.text, self.reasoning, (), reason, self._usage, endpoint, attempts)

    def _add_call(self, delta: ToolCallDelta) -> None:
        known = self._calls.get(delta.index)
        if known is None:
            if not delta.name:
                raise InvalidChunk(f"tool call {delta.index} has no name")
            self._calls[delta.index] = delta
            return
        if delta.id and delta.id != known.id:
            raise InvalidChunk(f"tool call {delta.index} changed its id on the way")
        self._calls[delta.index] = replace(known, arguments=known.arguments + delta.arguments)


def _whole_call(call: ToolCallDelta) -> ToolCall:
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidChunk(f"the arguments of its call of {call.name} are no JSON object")
    return ToolCall(call.name, arguments, id=call.id)
