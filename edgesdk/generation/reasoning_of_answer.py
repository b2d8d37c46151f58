"""What one answer's reasoning is told by, for all that needs to tell it from the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgesdk.engines.base import HiddenStates, Logits
from edgesdk.generation.constraint import Constraint
from edgesdk.generation.reasoning_constraint import ReasoningConstraint, ReasoningTokens
from edgesdk.generation.reasoning_reader import ReasoningReader
from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.reasoning_format import ReasoningMarks
from edgesdk.text.shown_tokens import ShownTokens
from edgesdk.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgesdk.generation.loop import StepCallback

# Enough of a prompt's end to hold any opening mark, in tokens.
_TAIL = 64


@dataclass(frozen=True)
class ReasoningOfAnswer:
    """The reasoning of one answer.

    Attributes:
        encoder: of the model.
        marks: around the reasoning; None where there is none to tell.
        inside: whether the prompt has opened it.
    """

    encoder: PromptEncoder
    marks: ReasoningMarks | None = None
    inside: bool = False

    def reader(self) -> ReasoningReader:
        """A reader of the answer, at its start."""
        return ReasoningReader(self.marks, inside=self.inside)

    def shown(self, tokenizer: Tokenizer) -> Tokenizer:
        """A tokenizer in whose text the marks are seen, where they are control tokens."""
        if self.marks is None:
            return tokenizer
        texts = self.marks.all
        return ShownTokens(tokenizer, lambda name: any(name in text for text in texts))

    def constraint(
        self, constraint: Constraint | None, max_tokens: int | None
    ) -> Constraint | None:
        """What holds the answer to its format after the reasoning, and bounds that.

        Args:
            constraint: of the answer; None for any text.
            max_tokens: of the reasoning; None for any number.
        """
        marks, encoder = self.marks, self.encoder
        if marks is None or (constraint is None and max_tokens is None):
            return constraint
        tokens = ReasoningTokens(
            encoder.mark_ids(marks.opening),
            encoder.mark_ids(marks.closing),
            encoder.mark_ids("".join(marks.headers)),
            encoder.tokenizer.eos_token_ids,
            self.shown(encoder.tokenizer).token_bytes,
        )
        return ReasoningConstraint(constraint, tokens, self.reader(), max_tokens=max_tokens)

    def steps_of_answer(self, on_step: StepCallback) -> StepCallback:
        """Have a callback see the steps of the answer, and not those of the reasoning.

        Tokens that may turn out to be a mark are no steps of the answer either.
        """
        if self.marks is None:
            return on_step
        reader = self.reader()
        token_bytes = self.shown(self.encoder.tokenizer).token_bytes

        def step(row: Logits, token: int, state: HiddenStates | None) -> None:
            reader.feed(token_bytes(token).decode("utf-8", "replace"))
            if reader.answers:
                on_step(row, token, state)

        return step


def reasoning_of_answer(
    encoder: PromptEncoder,
    prompt: Sequence[int],
    specs: Sequence[Mapping[str, Any]],
    *,
    chats: bool,
) -> ReasoningOfAnswer:
    """The reasoning of an answer.

    Args:
        prompt: its token ids.
        specs: tools that the prompt has.
        chats: whether the prompt is a conversation. A text that is continued has no reasoning:
            all is the text.
    """
    marks = encoder.reasoning_for(specs).marks if chats else None
    if marks is None:
        return ReasoningOfAnswer(encoder)
    found = ReasoningOfAnswer(encoder, marks)
    token_bytes = found.shown(encoder.tokenizer).token_bytes
    tail = b"".join(map(token_bytes, prompt[-_TAIL:])).decode("utf-8", "replace")
    return ReasoningOfAnswer(encoder, marks, marks.is_open(tail))
