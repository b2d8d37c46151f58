"""Speculative decoding: several drafted tokens are verified by one call of the model.

Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318. Every drafter here
drafts definite tokens: its distribution is a point mass. Speculative sampling then is to accept a
drafted x with the probability p(x) that the model gives it, and otherwise to sample from the rest
of p; to draw from p, and to accept x if that is what was drawn, is the same. So the loop's own
sampler chooses at each verified position. One random number for each token of the answer makes
the outcome that of the plain loop for the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence as TokenIds
from time import perf_counter
from typing import Protocol

from edgesdk.decode.pace import Pace
from edgesdk.decode.rows import ROWS, RecentRows, RowCheck
from edgesdk.engines.base import Logits, Rows, Sequence

MOST_DRAFTED = ROWS - 1


class Drafter(Protocol):
    """Guesses how a text goes on.

    Attributes:
        free: a guess costs next to nothing, so there may be one at every step.
    """

    free: bool

    def propose(self, tokens: TokenIds[int], most: int) -> list[int]:
        """At most `most` ids that may follow `tokens`; none if there is no good guess.

        Within one answer `tokens` only ever grows.
        """

    def close(self) -> None:
        """Free what it holds."""


class Speculator:
    """Decides for one answer when to draft, and how much.

    Args:
        prompt: ids before the answer.
        check: draft only where rows are known to agree, so that the answer is certainly the plain
            loop's; None where agreement does not matter.

    Attributes:
        rows: what the sequence is to be asked for when it verifies a draft.
        pace: how much to draft.
    """

    def __init__(
        self, prompt: TokenIds[int], drafter: Drafter, check: RowCheck | None, pace: Pace
    ) -> None:
        self._drafter = drafter
        self._check = check
        self._pace = pace
        self.rows: Rows = "all" if check is None else "each"
        self._recent = RecentRows()
        self._tokens = list(prompt)
        self._begun = 0.0
        # What a free drafter thinks of the next token, while plain steps are taken.
        self._guess: int | None = None
        self.drafted = 0
        self.accepted = 0

    def draft(self, sequence: Sequence, last: int, most: int) -> list[int]:
        """Tokens to verify after `last`, at most `most`; none where a plain step is the better.

        Args:
            sequence: holds all before `last`.
        """
        self._begun = perf_counter()
        self._tokens.append(last)
        if self._check is not None and self._check.refuted:
            return []
        if self._guess is not None:
            self._pace.watched(self._guess == last)
            self._guess = None
        length = self._pace.length(min(most, MOST_DRAFTED))
        if length == 0 and not self._drafter.free:
            return []
        proposed = self._drafter.propose(self._tokens, max(length, 1))
        if length and proposed and self._lossless(sequence):
            return proposed[:length]
        if proposed and self._drafter.free:
            self._guess = proposed[0]
        return []

    def stepped(self, row: Logits) -> None:
        """A step without a draft gave `row`, float32 [vocab]."""
        self._pace.plain(perf_counter() - self._begun)
        if self._check is not None and self._check.verdict(len(self._tokens)) is None:
            self._recent.add(row)
        else:
            self._recent.clear()

    def verified(self, drafted: int, right: list[int]) -> None:
        """Of a draft of `drafted` tokens, `right` were accepted."""
        self._pace.drafted(drafted, len(right), perf_counter() - self._begun)
        self._recent.clear()
        self._tokens += right
        self.drafted += drafted
        self.accepted += len(right)

    def close(self) -> None:
        """Free the drafter."""
        self._drafter.close()

    def _lossless(self, sequence: Sequence) -> bool:
        if self._check is None:
            return True
        held = len(self._tokens) - 1
        if self._check.verdict(held) is None and self._recent.full:
            self._check.measure(sequence, self._tokens[:held], self._recent)
            self._begun = perf_counter()
        return self._check.allows(held)
