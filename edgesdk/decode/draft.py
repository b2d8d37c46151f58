"""A draft model: a smaller model of the same vocabulary guesses how the text goes on."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field

from edgesdk.decode.pace import Costs
from edgesdk.decode.prefill import prefill
from edgesdk.engines.base import Engine, Sequence
from edgesdk.errors import InvalidOption
from edgesdk.text.base import Tokenizer


@dataclass(frozen=True)
class Draft:
    """A loaded draft model.

    Attributes:
        vocab_size: ids that the target's tokenizer has; models pad their logits beyond them.
        costs: of a draft and its verification together.
    """

    engine: Engine
    vocab_size: int
    costs: Costs = field(default_factory=Costs)

    def drafter(self, gated: Callable[[Sequence], Sequence]) -> DraftModel:
        """A drafter for one answer; see `DraftModel`."""
        return DraftModel(self.engine, self.vocab_size, gated)

    def close(self) -> None:
        """Free the model."""
        self.engine.close()


class DraftModel:
    """Implements `Drafter` with the likeliest tokens of a draft model.

    Args:
        gated: makes of the engine's sequence one whose calls take their turn, and stop.
    """

    free = False

    def __init__(
        self,
        engine: Engine,
        vocab_size: int,
        gated: Callable[[Sequence], Sequence] = lambda sequence: sequence,
    ) -> None:
        self._engine = engine
        self._gated = gated
        self._vocab_size = vocab_size
        self._sequence: Sequence | None = None
        # What the text was at the last call, and how many of its guesses the cache holds as well.
        self._known = 0
        self._guessed: list[int] = []

    def propose(self, tokens: TokenIds[int], most: int) -> list[int]:
        if len(tokens) + most > self._engine.info.context_length:
            return []
        if self._sequence is None:
            self._sequence = self._gated(self._engine.sequence())
        sequence = self._sequence
        kept = self._known
        for guess in self._guessed:
            # The last token of the text is always computed, because its logits are wanted.
            if kept >= len(tokens) - 1 or tokens[kept] != guess:
                break
            kept += 1
        sequence.rewind(kept)
        self._known, self._guessed = kept, []
        row = prefill(sequence, tokens[kept:])[0]
        self._known = len(tokens)
        proposed = [int(row[: self._vocab_size].argmax())]
        while len(proposed) < most:
            row = sequence.extend(proposed[-1:])[0]
            self._guessed.append(proposed[-1])
            proposed.append(int(row[: self._vocab_size].argmax()))
        return proposed

    def close(self) -> None:
        if self._sequence is not None:
            self._sequence.close()
            self._sequence = None


def check_same_tokens(target: Tokenizer, draft: Tokenizer, *, name: str) -> None:
    """Raise unless both tokenizers mean the same by every id.

    Args:
        name: of the draft model, for the message.

    Raises:
        InvalidOption: they do not.
    """
    where = None
    if target.vocab_size != draft.vocab_size:
        where = f"{target.vocab_size:,} tokens against {draft.vocab_size:,}"
    else:
        for token in range(target.vocab_size):
            if target.token_bytes(token) != draft.token_bytes(token):
                where = f"token {token} is another"
                break
    if where is not None:
        raise InvalidOption(
            f"{name} has another tokenizer than the model that it is to draft for: {where}.",
            hint="Take a smaller model of the same family.",
        )
