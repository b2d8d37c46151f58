"""What a cloud says, with private values in their places, and checked for its use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgesdk.errors import StructureError
from edgesdk.hybrid.ask import Ask
from edgesdk.hybrid.cloud.answer import CloudAnswer, Piece, Thought
from edgesdk.hybrid.outgoing import Outgoing
from edgesdk.hybrid.privacy.restoring import RestoringStream, in_json, restore, restore_json
from edgesdk.hybrid.reply import HybridReply, LocalDraft
from edgesdk.hybrid.spending.limits import Cost
from edgesdk.tools.calls import ToolCall, ToolCalls

Why = Literal["policy", "budget", "away", "unfit", "failed"]


class NotAsked(Exception):
    """The cloud gave no answer, or none of use. Never leaves the SDK.

    Its text is of the SDK's own words, because it is written down; what an endpoint or a callable
    said may quote the prompt.

    Args:
        why: "policy": it may not be asked; "budget": not now; "away": it could not be reached, or
            was busy; "unfit": it does not take this request; "failed": anything else.
        cost: of attempts that came to nothing, or of an answer of no use.
    """

    def __init__(self, reason: str, why: Why = "failed", *, cost: Cost | None = None) -> None:
        super().__init__(reason)
        self.why = why
        self.cost = cost or Cost()


@dataclass(frozen=True)
class Asked:
    """What the cloud said, with private values in their places, and what it cost.

    Attributes:
        parsed: its value, where a form was asked for.
    """

    answer: CloudAnswer
    cost: Cost
    calls: ToolCalls = field(default_factory=ToolCalls)
    parsed: Any = None

    def reply(self, reason: str, local: LocalDraft | None, gate: str) -> HybridReply:
        """The reply, where this is the answer."""
        return HybridReply(
            self.answer.text, "cloud", reason, False, local, self.answer, self.cost, gate,
            self.parsed, self.calls,
        )  # fmt: skip


class Restoring:
    """Restores the pieces of one attempt; what is thought and what is said are apart."""

    def __init__(self, ask: Ask) -> None:
        self._said = RestoringStream(ask.vault, str if ask.form is None else in_json)
        self._thought = RestoringStream(ask.vault)

    def feed(self, event: Piece | Thought) -> Iterator[Piece | Thought]:
        """What is certain after `event`."""
        if isinstance(event, Thought):
            if text := self._thought.feed(event.text):
                yield Thought(text)
        elif text := self._said.feed(event.text):
            yield Piece(text)

    def flush(self) -> Iterator[Piece | Thought]:
        """What is left at the end."""
        if text := self._thought.flush():
            yield Thought(text)
        if text := self._said.flush():
            yield Piece(text)


def asked_of(answer: CloudAnswer, sent: Outgoing, ask: Ask, cost: Cost) -> Asked:
    """The answer as the app gets it.

    Raises:
        NotAsked: it is whole, and its calls do not fit the tools, or its text not the form.
    """
    vault = ask.vault
    text = restore(vault, answer.text, str if ask.form is None else in_json)
    restored = replace(answer, text=text, reasoning=restore(vault, answer.reasoning))
    calls, parsed = ToolCalls(), None
    if answer.calls:
        calls = _checked(answer, sent, ask)
        if not calls or any(call.problem for call in calls):
            raise NotAsked("the cloud's call does not fit the tools", cost=cost)
    elif ask.tools is not None and ask.tools.must_call and answer.whole:
        raise NotAsked("the cloud called no tool", cost=cost)
    elif ask.form is not None:
        try:
            parsed = ask.form.read(text)
        except StructureError as error:
            raise NotAsked("the cloud's answer has not the form", cost=cost) from error
    return Asked(restored, cost, calls, parsed)


def _checked(answer: CloudAnswer, sent: Outgoing, ask: Ask) -> ToolCalls:
    """The calls with their arguments restored; empty where none were allowed."""
    if ask.tools is None:
        return ToolCalls()
    return ask.tools.check(
        ToolCall(
            sent.names.get(call.name, call.name),
            # An assembled call has an object of arguments; restored as values, because a value may
            # have what JSON escapes.
            restore_json(ask.vault, json.loads(call.arguments or "{}")),
            id=call.id,
        )
        for call in answer.calls
    )
