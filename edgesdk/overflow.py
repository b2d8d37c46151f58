"""What a chat does when its next turn does not fit the context."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from edgesdk.errors import InvalidOption

OverflowPolicy = Literal["error", "drop_oldest_turns", "summarize"]
Turn: TypeAlias = list[dict[str, Any]]

_ROOM_FOR_ANSWER = 512


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
class Shortened:
    """A conversation without its oldest turns.

    Attributes:
        dropped: the turns that go, oldest first.
        turns: messages of the turns that stay.
    """

    dropped: tuple[Turn, ...]
    turns: list[dict[str, Any]]


def checked_policy(policy: str) -> OverflowPolicy:
    """`policy` itself.

    Raises:
        InvalidOption: there is no such policy.
    """
    for known in get_args(OverflowPolicy):
        if policy == known:
            return known  # type: ignore[no-any-return]
    raise InvalidOption(
        f"overflow cannot be {policy!r}.",
        hint=f"Choose from: {', '.join(get_args(OverflowPolicy))}.",
    )


def prompt_limit(context_length: int, max_tokens: int | None) -> int:
    """Most tokens of a prompt that leaves the answer room; at most a quarter of the context."""
    return context_length - min(max_tokens or _ROOM_FOR_ANSWER, context_length // 4)


def drop_oldest(
    turns: Sequence[dict[str, Any]], tokens: Callable[[list[dict[str, Any]]], int], target: int
) -> Shortened:
    """Leave out as few of the oldest turns as make the prompt fit.

    A turn is a message of the user and all that follows it, calls of tools and their results
    among them; one stays or goes as a whole.

    Args:
        tokens: tokens of the prompt whose history is the given messages.
        target: the most of them. Where no history fits, all turns go.
    """
    grouped: list[Turn] = []
    for message in turns:
        if message["role"] == "user" or not grouped:
            grouped.append([])
        grouped[-1].append(message)

    def rest(start: int) -> list[dict[str, Any]]:
        return [message for turn in grouped[start:] for message in turn]

    first = bisect.bisect_left(
        range(len(grouped)), True, key=lambda start: tokens(rest(start)) <= target
    )
    return Shortened(tuple(grouped[:first]), rest(first))


def low_water(limit: int) -> int:
    """How far to go below `limit`.

    Dropping turns costs the KV cache of all that follows them, so some turns' worth of room is
    made at once instead of a little before each turn.
    """
    return limit * 3 // 4
