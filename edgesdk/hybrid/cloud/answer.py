"""What an answer from the cloud is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgesdk.hybrid.cloud.chunks import BadChunk, CallAssembly, CloudCall, Delta, Usage


@dataclass(frozen=True)
class Piece:
    """The answer goes on with `text`; `route` is who says it."""

    text: str
    route: Literal["local", "cloud"] = "cloud"


@dataclass(frozen=True)
class Thought:
    """The model's reasoning, which is not part of the answer, goes on with `text`."""

    text: str


@dataclass(frozen=True)
class Restart:
    """All pieces so far are void: the answer begins again, from another attempt."""

    reason: str


@dataclass(frozen=True)
class CloudAnswer:
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
    calls: tuple[CloudCall, ...]
    finish_reason: str
    usage: Usage | None
    endpoint: str
    attempts: int

    @property
    def whole(self) -> bool:
        """Whether the endpoint said that this is all."""
        return self.finish_reason not in ("incomplete", "deadline")


CloudEvent = Piece | Thought | Restart | CloudAnswer


class Draft:
    """What one attempt has brought so far."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self._calls = CallAssembly()
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._pieces = 0
        self._last: Delta | None = None
        self._repeated = False

    @property
    def begun(self) -> bool:
        """Whether the caller has seen something of it."""
        return bool(self.text or self.reasoning)

    def add(self, delta: Delta) -> list[CloudEvent]:
        """The events of one more chunk.

        Raises:
            BadChunk: its tool calls do not fit those before.
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
            events.append(Thought(delta.reasoning))
        if delta.text:
            events.append(Piece(delta.text))
        return events

    def whole(self, endpoint: str, attempts: int) -> CloudAnswer:
        """The answer at its end.

        Raises:
            BadChunk: its tool calls are not whole, or a chunk came twice.
        """
        # The same token twice looks like the same chunk twice; the endpoint's own count tells.
        if self._repeated and self._usage and self._pieces > self._usage.completion_tokens:
            raise BadChunk("it sent a chunk twice")
        assert self._finish_reason is not None, "an attempt ends with a finish"
        return CloudAnswer(
            self.text, self.reasoning, self._calls.whole(), self._finish_reason, self._usage,
            endpoint, attempts,
        )  # fmt: skip

    def partial(self, reason: str, endpoint: str, attempts: int) -> CloudAnswer:
        """What there is; half a tool call is none."""
        return CloudAnswer(self.text, self.reasoning, (), reason, self._usage, endpoint, attempts)
