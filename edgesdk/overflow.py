"""What a chat does when its next turn does not fit the context."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, TypeAlias, get_args

from edgesdk.generation.finish import Finish
from edgesdk.generation.loop import Generation, Step
from edgesdk.options import Options
from edgesdk.request import Request
from edgesdk.system.checks import checked_choice
from edgesdk.tools.call_messages import Message

OverflowPolicy = Literal["error", "drop_oldest_turns", "summarize"]
TurnMessages: TypeAlias = list[Message]

_ROOM_FOR_ANSWER = 512
_MAX_SUMMARY_TOKENS = 256
_ASK = (
    "Summarize our conversation so far in a few sentences, for yourself. Keep names, numbers,"
    " decisions and open questions. Write only the summary."
)
_SUMMARY = "Summary of our conversation so far: {}"
# Some templates demand that user and assistant take turns.
_NOTED = "I have it in mind."


@dataclass(frozen=True)
class Overflow:
    """What was done so that a turn fits; on its receipt.

    Attributes:
        policy: who decided.
        turns_dropped: how many of the oldest turns the model no longer sees as they were.
        tokens_before: tokens of the prompt with all turns.
        tokens_after: tokens of the prompt that was answered.
        summary_tokens: tokens of the summary that stands for the dropped turns; 0 without one.
        seconds: time that the summary took.
    """

    policy: OverflowPolicy
    turns_dropped: int
    tokens_before: int
    tokens_after: int
    summary_tokens: int = 0
    seconds: float = 0.0

    def phrase(self) -> str:
        """A few words for people."""
        what = "summarized" if self.summary_tokens else "dropped"
        count = f"{self.turns_dropped} turn{'' if self.turns_dropped == 1 else 's'}"
        return f"{count} {what} ({self.tokens_before:,} -> {self.tokens_after:,} tokens)"


@dataclass(frozen=True)
class ShortenedHistory:
    """A conversation without its oldest turns.

    Attributes:
        dropped: the turns that go, oldest first.
        turns: messages of the turns that stay.
    """

    dropped: tuple[TurnMessages, ...]
    turns: list[Message]


def checked_policy(policy: str) -> OverflowPolicy:
    """`policy` itself.

    Raises:
        InvalidOption: there is no such policy.
    """
    return checked_choice("overflow", policy, get_args(OverflowPolicy))


def prompt_limit(context_length: int, max_tokens: int | None) -> int:
    """Most tokens of a prompt that leaves the answer room; at most a quarter of the context."""
    return context_length - min(max_tokens or _ROOM_FOR_ANSWER, context_length // 4)


def drop_oldest(
    turns: Sequence[Message], tokens: Callable[[list[Message]], int], target: int
) -> ShortenedHistory:
    """Leave out as few of the oldest turns as make the prompt fit.

    A turn is a message of the user and all that follows it, calls of tools and their results
    among them; one stays or goes as a whole.

    Args:
        tokens: tokens of the prompt whose history is the given messages.
        target: the most of them. Where no history fits, all turns go.
    """
    grouped: list[TurnMessages] = []
    for message in turns:
        if message["role"] == "user" or not grouped:
            grouped.append([])
        grouped[-1].append(message)

    def rest(start: int) -> list[Message]:
        return [message for turn in grouped[start:] for message in turn]

    first = bisect.bisect_left(
        range(len(grouped)), True, key=lambda start: tokens(rest(start)) <= target
    )
    return ShortenedHistory(tuple(grouped[:first]), rest(first))


def low_watermark(limit: int) -> int:
    """How far to go below `limit`.

    Dropping turns costs the KV cache of all that follows them, so some turns' worth of room is
    made at once instead of a little before each turn.
    """
    return limit * 3 // 4


@dataclass(frozen=True)
class OverflowingConversation:
    """What is to be shortened and then answered.

    Attributes:
        system_messages: the system message, or nothing.
        shortened: turns that are to be summed up, and those that stay.
        new_messages: the user's new message, and what followed it.
        tokens_before: tokens of the prompt with all turns.
    """

    system_messages: list[Message]
    shortened: ShortenedHistory
    new_messages: list[Message]
    tokens_before: int


class SummarizedAnswer(Iterator[Step]):
    """An answer that first has the model sum up the oldest turns of its conversation.

    Implements `edgesdk.reply.StepSource`; nothing is computed until it is iterated. Both answers
    run on one decode state: the turns to be summed up are in its KV cache already.

    Args:
        request: the answer's. The summary is greedy free text, and counts towards the deadline.
        begin: starts a generation.
        context_length: of the engine, in tokens.
    """

    def __init__(
        self,
        conversation: OverflowingConversation,
        request: Request,
        *,
        begin: Callable[[Request], Generation],
        context_length: int,
    ) -> None:
        self.turns = conversation.shortened.turns
        self.overflow: Overflow | None = None
        self._conversation = conversation
        self._request = request
        self._begin = begin
        self._context_length = context_length
        self._answer: Generation | None = None
        self._closed_early: Finish | None = None

    @property
    def finish(self) -> Finish | None:
        """How it ended; None before that."""
        return self._closed_early if self._answer is None else self._answer.finish

    def __next__(self) -> Step:
        if self._answer is None:
            self._answer = self._start()
        return next(self._answer)

    def close(self) -> None:
        """End here; harmless where it has ended."""
        if self._answer is not None:
            self._answer.close()
        elif self._closed_early is None:
            self._closed_early = Finish("cancelled", (), 0, 0, 0.0, 0.0, 0, None)

    def _start(self) -> Generation:
        begun = perf_counter()
        conversation = self._conversation
        summary, summary_tokens = self._summarize()
        if summary:
            self.turns = [
                {"role": "user", "content": _SUMMARY.format(summary)},
                {"role": "assistant", "content": _NOTED},
                *conversation.shortened.turns,
            ]
        request = self._asking([*self.turns, *conversation.new_messages])
        self.overflow = Overflow(
            "summarize",
            turns_dropped=len(conversation.shortened.dropped),
            tokens_before=conversation.tokens_before,
            tokens_after=len(request.tokens),
            summary_tokens=summary_tokens if summary else 0,
            seconds=perf_counter() - begun,
        )
        return self._begin(request)

    def _summarize(self) -> tuple[str, int]:
        """The summary and its tokens; "" where there is none, or it was cancelled."""
        ask = {"role": "user", "content": _ASK}
        limit = min(_MAX_SUMMARY_TOKENS, self._context_length // 8)
        dropped = [message for turn in self._conversation.shortened.dropped for message in turn]
        # The oldest of many may be too many even for the summary; they go without one.
        readable = drop_oldest(
            dropped,
            lambda turns: len(self._asking([*turns, ask]).tokens),
            self._context_length - limit,
        ).turns
        if not readable:
            return "", 0
        deadline = self._request.options.deadline
        generation = self._begin(
            self._asking([*readable, ask]).replaced(
                options=Options(max_tokens=limit, deadline=deadline)
            )
        )
        text = "".join(step.text for step in generation).strip()
        finish = generation.finish
        if finish is None or finish.reason in ("cancelled", "deadline"):
            return "", 0
        return text, len(finish.tokens)

    def _asking(self, messages: list[Message]) -> Request:
        return self._request.replaced(messages=[*self._conversation.system_messages, *messages])
