"""Hold only the answer to a format, after the reasoning; and bound how long the reasoning is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from edgesdk.engines.base import Logits
from edgesdk.generation.constraint import Constraint
from edgesdk.generation.reasoning_reader import ReasoningReader
from edgesdk.generation.sampling import without


@dataclass(frozen=True)
class ReasoningTokens:
    """The marks of a model's reasoning as token ids.

    Attributes:
        opening, closing: see `edgesdk.text.reasoning_format.ReasoningMarks`.
        headers: all of them, one after the other.
        ends: tokens that end an answer.
        text_of: the text of a token, marks included.
    """

    opening: Sequence[int]
    closing: Sequence[int]
    headers: Sequence[int]
    ends: Collection[int]
    text_of: Callable[[int], bytes]


class ReasoningConstraint:
    """Implements `Constraint`: free reasoning first, and then what another constraint allows.

    A model whose prompt does not open the reasoning may begin with it, or with the answer. What
    stands between reasoning and answer is written for it.

    Args:
        constraint: of the answer, at its start; None for any text.
        reader: of this answer, at its start; this constraint's own.
        max_tokens: of the reasoning, after which it is closed; None for any number.
    """

    def __init__(
        self,
        constraint: Constraint | None,
        tokens: ReasoningTokens,
        reader: ReasoningReader,
        *,
        max_tokens: int | None = None,
    ) -> None:
        self._constraint = constraint
        self._tokens = tokens
        self._reader = reader
        self._max_tokens = max_tokens
        self._left = max_tokens
        # Tokens that come next, whatever the model would say.
        self._forced: deque[int] = deque()
        self._answers = False
        # Whether the first token may be the opening mark's and nothing else.
        self._may_open = False

    @property
    def complete(self) -> bool:
        if self._constraint is None:
            return True
        return self._answers and self._constraint.complete

    @property
    def finished(self) -> bool:
        return self._answers and self._constraint is not None and self._constraint.finished

    def masked(self, logits: Logits) -> Logits:
        if self._forced:
            return _only(logits, self._forced[0])
        if self._reader.reasons:
            # Without an answer there is nothing of the format.
            return logits if self._constraint is None else without(logits, self._tokens.ends)
        if self._constraint is None:
            return logits
        allowed = self._constraint.masked(logits)
        opening = self._tokens.opening[0]
        self._may_open = not self._answers and allowed[opening] == -np.inf
        if self._may_open:
            allowed[opening] = logits[opening]
        return allowed

    def accept(self, token: int) -> None:
        if self._answers:
            self._accept_answer(token)
        elif self._forced:
            self._forced.popleft()
            self._read(token)
        elif self._reader.reasons:
            self._read(token)
        elif self._constraint is not None and not (
            self._may_open and token == self._tokens.opening[0]
        ):
            self._answers = True
            self._accept_answer(token)
        else:
            if self._constraint is not None:
                self._forced.extend(self._tokens.opening[1:])
            self._read(token)

    def _accept_answer(self, token: int) -> None:
        if self._constraint is not None:
            self._constraint.accept(token)

    def _read(self, token: int) -> None:
        reasoned = self._reader.reasons
        self._reader.feed(self._tokens.text_of(token).decode("utf-8", "replace"))
        if self._reader.reasons:
            closes = self._max_tokens is not None and self._reader.tokens >= self._max_tokens
            if closes and not self._forced:
                self._forced.extend(self._tokens.closing)
        elif reasoned:
            self._forced.clear()
            if self._constraint is not None:
                self._forced.extend(self._tokens.headers)
        # Any text may follow its header by itself.
        closed = not self._reader.reasons and self._reader.tokens > 0
        self._answers = self._reader.answers or (closed and not self._forced)


def _only(logits: Logits, token: int) -> Logits:
    masked = np.full_like(logits, -np.inf)
    masked[token] = 0.0
    return masked
