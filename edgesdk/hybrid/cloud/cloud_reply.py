"""The events of a cloud's reply, and the reply itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgesdk.hybrid.cloud.wire import (
    ChunkDelta,
    InvalidChunk,
    ToolCallAssembly,
    Usage,
    WireToolCall,
)


@dataclass(frozen=True)
class TextDelta:
    """The answer goes on with `text`; `route` is who says it."""

    text: str
    route: Literal["local", "cloud"] = "cloud"


@dataclass(frozen=True)
class ReasoningDelta:
    """The model's reasoning, which is not part of the answer, goes on with `text`."""

    text: str


@dataclass(frozen=True)
class Restart:
    """All pieces so far are void: the answer begins again, from another attempt."""

    reason: str


@dataclass(frozen=True)
class CloudReply:
    """How an answer ended.

    Attributes:
        finish_reason: the endpoint's own; "incomplete" where the connection failed under way,
            "deadline" where the time was over.
        calls: of tools; only ever of a whole answer.
        usage: as the endpoint counted; None where it did not.
        endpoint: who gave it.
        attempts: how many requests it took.
    """

    text: str
    reasoning: str
    calls: tuple[WireToolCall, ...]
    finish_reason: str
    usage: Usage | None
    endpoint: str
    attempts: int

    @property
    def whole(self) -> bool:
        """Whether the endpoint said that this is all."""
        return self.finish_reason not in ("incomplete", "deadline")


CloudEvent = TextDelta | ReasoningDelta | Restart | CloudReply


class ReplyAssembly:
    """What one attempt has brought so far."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self._calls = ToolCallAssembly()
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._pieces = 0
        self._last: ChunkDelta | None = None
        self._repeated = False

    @property
    def begun(self) -> bool:
        """Whether the caller has seen something of it."""
        return bool(self.text or self.reasoning)

    def add(self, delta: ChunkDelta) -> list[CloudEvent]:
        """The events of one more chunk.

        Raises:
            InvalidChunk: its tool calls do not fit those before.
        """
        self._usage = delta.usage or self._usage
        self._finish_reason = delta.finish_reason or self._finish_reason
        if not delta.empty:
            self._pieces += 1
            self._repeated = self._repeated or delta == self._last
            self._last = delta
        for piece in delta.calls:
            self._calls.add(piece)
        self.text += delta.text
        self.reasoning += delta.reasoning
        events: list[CloudEvent] = []
        if delta.reasoning:
            events.append(ReasoningDelta(delta.reasoning))
        if delta.text:
            events.append(TextDelta(delta.text))
        return events

    def whole(self, endpoint: str, attempts: int) -> CloudReply:
        """The answer at its end.

        Raises:
            InvalidChunk: its tool calls are not whole, or a chunk came twice.
        """
        # The same token twice looks like the same chunk twice; the endpoint's own count tells.
        if self._repeated and self._usage and self._pieces > self._usage.completion_tokens:
            raise InvalidChunk("it sent a chunk twice")
        assert self._finish_reason is not None, "an attempt ends with a finish"
        return CloudReply(
            self.text, self.reasoning, self._calls.whole(), self._finish_reason, self._usage,
            endpoint, attempts,
        )  # fmt: skip

    def partial(self, reason: str, endpoint: str, attempts: int) -> CloudReply:
        """What there is; half a tool call is none."""
        return CloudReply(self.text, self.reasoning, (), reason, self._usage, endpoint, attempts)
