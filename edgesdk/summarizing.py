"""An answer that first has the model sum up the oldest turns of its conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from edgesdk.decode.loop import Finish, Generation, Step
from edgesdk.decode.options import Options
from edgesdk.overflow import Overflow, Shortened, drop_oldest

_MOST_TOKENS = 256
_ASK = (
    "Summarize our conversation so far in a few sentences, for yourself. Keep names, numbers,"
    " decisions and open questions. Write only the summary."
)
_SUMMARY = "Summary of our conversation so far: {}"
# Some templates demand that user and assistant take turns.
_NOTED = "I have it in mind."


@dataclass(frozen=True)
class Conversation:
    """What is to be shortened and then answered.

    Attributes:
        told: the system message, or nothing.
        shortened: turns that are to be summed up, and those that stay.
        news: the user's new message, and what followed it.
        tokens_before: tokens of the prompt with all turns.
    """

    told: list[dict[str, Any]]
    shortened: Shortened
    news: list[dict[str, Any]]
    tokens_before: int


class Summarizing(Iterator[Step]):
    """Implements `edgesdk.streaming.Answer`; nothing is computed until it is iterated.

    Both answers run on one sequence: the turns to be summed up are in its KV cache already.

    Args:
        begin: starts a generation for a prompt and options.
        encode: ids of a conversation.
        options: of the answer. The summary is greedy, and counts towards the deadline.
        context_length: of the engine, in tokens.
    """

    def __init__(
        self,
        conversation: Conversation,
        *,
        begin: Callable[[list[int], Options], Generation],
        encode: Callable[[list[dict[str, Any]]], list[int]],
        options: Options,
        context_length: int,
    ) -> None:
        self.turns = conversation.shortened.turns
        self.overflow: Overflow | None = None
        self._conversation = conversation
        self._begin = begin
        self._encode = encode
        self._options = options
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
        ids = self._encode([*conversation.told, *self.turns, *conversation.news])
        self.overflow = Overflow(
            "summarize",
            turns_dropped=len(conversation.shortened.dropped),
            tokens_before=conversation.tokens_before,
            tokens_after=len(ids),
            summary_tokens=summary_tokens if summary else 0,
            seconds=perf_counter() - begun,
        )
        return self._begin(ids, self._options)

    def _summarize(self) -> tuple[str, int]:
        """The summary and its tokens; "" where the model or the caller gave it up."""
        told, ask = self._conversation.told, {"role": "user", "content": _ASK}
        bound = min(_MOST_TOKENS, self._context_length // 8)

        def tokens(turns: list[dict[str, Any]]) -> int:
            return len(self._encode([*told, *turns, ask]))

        gone = [message for turn in self._conversation.shortened.dropped for message in turn]
        # The oldest of many may be too many even for the summary; they go without one.
        readable = drop_oldest(gone, tokens, self._context_length - bound).turns
        if not readable:
            return "", 0
        options = replace(Options(), max_tokens=bound, deadline=self._options.deadline)
        generation = self._begin(self._encode([*told, *readable, ask]), options)
        text = "".join(step.text for step in generation).strip()
        finish = generation.finish
        if finish is None or finish.reason in ("cancelled", "deadline"):
            return "", 0
        return text, len(finish.tokens)
