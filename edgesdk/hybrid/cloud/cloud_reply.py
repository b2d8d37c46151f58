"""The events of a cloud's reply, and the reply that they add up to."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from edgesdk.errors import FailedAttempt
from edgesdk.hybrid.cloud.wire import ChunkDelta, InvalidChunk, ToolCallDelta, Usage, parse_json
from edgesdk.reply import ReasoningDelta as ReasoningDelta
from edgesdk.tools.calls import ToolCall


@dataclass(frozen=True)
class TextDelta:
    """The reply goes on with `text`; `route` says who wrote it."""

    text: str
    route: Literal["local", "cloud"] = "cloud"


@dataclass(frozen=True)
class Restart:
    """All text so far is void: the reply begins again, from another attempt."""

    reason: str


@dataclass(frozen=True)
class CloudReply:
    """A cloud's reply at its end.

    Attributes:
        finish_reason: "stop", "length", "tool_calls" or "content_filter", whatever the endpoint
            calls it; "incomplete" where the reply broke off, "deadline" where the time was over.
        calls: of tools; only a complete reply has any.
        usage: as the endpoint counted; None where it did not.
        endpoint: who gave it.
        attempts: how many requests were made for it.
        failures: why those before it failed, and why it is incomplete.
    """

    text: str
    reasoning: str
    calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage | None
    endpoint: str
    attempts: int
    failures: tuple[FailedAttempt, ...] = ()

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


# Of text, reasoning and calls together.
_MAX_CHARACTERS = 16 * 2**20


class ReplyAssembly:
    """Assembles the reply of one attempt from its chunks."""

    def __init__(self) -> None:
        self.text = self.reasoning = ""
        self._text, self._reasoning = _Utf16Joiner(), _Utf16Joiner()
        self._calls: list[ToolCallDelta] = []
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._num_characters = 0

    @property
    def begun(self) -> bool:
        """Whether the caller has seen something of it."""
        return bool(self.text or self.reasoning)

    def add(self, delta: ChunkDelta) -> list[CloudEvent]:
        """Add one more chunk, and return its events."""
        written = [delta.text, delta.reasoning, *(call.arguments for call in delta.calls)]
        self._num_characters += sum(map(len, written))
        if self._num_characters > _MAX_CHARACTERS:
            raise InvalidChunk("it sent a reply without an end")
        self._usage = delta.usage or self._usage
        self._finish_reason = delta.finish_reason or self._finish_reason
        for call in delta.calls:
            self._add_call(call)
        return self._say(self._text.feed(delta.text), self._reasoning.feed(delta.reasoning))

    def flush(self) -> list[CloudEvent]:
        """Return what was held back; no chunk may follow."""
        return self._say(self._text.flush(), self._reasoning.flush())

    def complete(self, endpoint: str, attempts: int) -> CloudReply:
        """Return the reply at the end of the stream.

        Raises:
            InvalidChunk: a call has no name, or its arguments are no JSON object.
        """
        reason = self._finish_reason or "stop"
        if all(call.index is not None for call in self._calls):
            self._calls.sort(key=lambda call: call.index or 0)
        try:
            calls = tuple(_whole_call(call) for call in self._calls)
        except InvalidChunk:
            if reason != "length":
                raise
            # Another attempt would be cut at the same length, and is paid for again.
            calls = ()
        ids = [call.id for call in calls]
        # Whoever has no id of its own is given one later.
        calls = tuple(
            replace(call, id="") if call.id in ids[:at] else call for at, call in enumerate(calls)
        )
        if calls and reason == "stop":
            reason = "tool_calls"
        return CloudReply(self.text, self.reasoning, calls, reason, self._usage, endpoint, attempts)

    def partial(self, reason: str, endpoint: str, attempts: int) -> CloudReply:
        """Return what there is, without tool calls: half a call is none."""
        return CloudReply(self.text, self.reasoning, (), reason, self._usage, endpoint, attempts)

    def _say(self, text: str, reasoning: str) -> list[CloudEvent]:
        self.text += text
        self.reasoning += reasoning
        events: list[CloudEvent] = [ReasoningDelta(reasoning)] if reasoning else []
        return [*events, TextDelta(text)] if text else events

    def _add_call(self, delta: ToolCallDelta) -> None:
        """Add a part to the call that it continues, or begin a call.

        Endpoints number calls, or name them by id, or do both, or neither. Some repeat the name in
        each part; some give each part another id; some give all calls the number 0, but then each
        call comes whole.
        """
        place = self._place_of(delta)
        if place is None:
            self._calls.append(delta)
            return
        known = self._calls[place]
        if delta.name and delta.arguments.strip() and _is_whole(known.arguments):
            if not delta.id or delta != known:
                self._calls.append(delta)
            return
        # Some begin with an empty object.
        begun = "" if known.arguments.strip() == "{}" and delta.arguments else known.arguments
        self._calls[place] = replace(
            known,
            id=known.id or delta.id,
            name=known.name or delta.name,
            arguments=begun + delta.arguments,
        )

    def _place_of(self, delta: ToolCallDelta) -> int | None:
        """Find the call that a part belongs to: the last one of its number, else of its id. A part
        that has neither of a call before continues the last one, where it cannot begin one."""
        places = range(len(self._calls) - 1, -1, -1)
        for at in places:
            known = self._calls[at]
            if delta.index is not None and delta.index == known.index:
                return at
            if delta.index is None and delta.id and delta.id == known.id:
                return at
        if not places:
            return None
        goes_on = delta.index is None and not delta.id and delta.name == self._calls[-1].name
        return places[0] if goes_on or not delta.name else None


class _Utf16Joiner:
    """Joins characters that come as two halves, each in a chunk of its own (UTF-16 surrogates)."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Return what is whole; a first half at the end waits for the second."""
        text = self._held + text
        self._held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return well_formed(text[: len(text) - len(self._held)])

    def flush(self) -> str:
        """Return a half that stayed alone, as a replacement character."""
        held, self._held = self._held, ""
        return well_formed(held)


def well_formed(text: str) -> str:
    """Join surrogates to the characters they stand for; replace those that stand alone."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_whole(arguments: str) -> bool:
    """Whether these are all arguments of a call."""
    if not arguments.rstrip().endswith("}"):
        return False
    try:
        return isinstance(parse_json(arguments), dict)
    except InvalidChunk:
        return False


def _whole_call(call: ToolCallDelta) -> ToolCall:
    if not call.name:
        raise InvalidChunk("a tool call has no name")
    try:
        arguments = parse_json(call.arguments.strip() or "{}", strict=True)
        if isinstance(arguments, str):
            # Some write JSON into JSON.
            arguments = parse_json(arguments, strict=True)
    except InvalidChunk:
        arguments = None
    if not isinstance(arguments, dict):
        raise InvalidChunk(f"the arguments of its call of {call.name[:64]} are no JSON object")
    return ToolCall(well_formed(call.name), _well_formed(arguments), id=well_formed(call.id))


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {well_formed(key): _well_formed(item) for key, item in value.items()}
    return [_well_formed(item) for item in value] if isinstance(value, list) else value
