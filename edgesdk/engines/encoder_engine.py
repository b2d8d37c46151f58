"""The seam between encoders and what is above them: rows of token ids in, hidden states out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgesdk.engines.base import EngineInfo, HiddenStates, checked_ids

Scores = npt.NDArray[np.float32]
# One call computes about so many tokens, with those that fill its shorter rows up: enough for a
# processor's matrix kernels, few enough that activations stay small.
_BATCH_TOKENS = 2048
_BATCH_ROWS = 64


@dataclass(frozen=True)
class TokenRow:
    """A text, or a pair of texts, with the model's special tokens around it.

    Attributes:
        types: one for each id: 1 for the second text of a pair where the model tells them apart.
            Empty where all are 0.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()


class EncoderEngine(Protocol):
    """A loaded encoder. May be used by several threads.

    All calls take any number of rows; `EngineInfo.context_length` is the most tokens of one.
    """

    @property
    def info(self) -> EngineInfo:
        """What runs, and where."""

    def hidden_states(self, rows: Sequence[TokenRow]) -> list[HiddenStates]:
        """The hidden states of each row, float32 [tokens, hidden].

        Raises:
            RequestError: a row is empty, or has an id outside the vocabulary.
            ContextOverflow: a row is longer than the context.
            EngineError: the engine failed, or is closed.
        """

    def scores(self, rows: Sequence[TokenRow]) -> Scores:
        """What the model's head says of each row, float32 [rows, labels]; raises likewise."""

    def close(self) -> None:
        """Free the model."""


def check_rows(rows: Sequence[TokenRow], info: EngineInfo) -> None:
    """Refuse rows that a model cannot take; raises as `EncoderEngine.hidden_states` does."""
    for row in rows:
        checked_ids(row.ids, held=0, vocab_size=info.vocab_size, context_length=info.context_length)


def length_batches(rows: Sequence[TokenRow]) -> Iterator[list[int]]:
    """The places of rows in batches of similar length, the longest first."""
    order = sorted(range(len(rows)), key=lambda at: -len(rows[at].ids))
    while order:
        longest = len(rows[order[0]].ids)
        count = max(1, min(_BATCH_ROWS, _BATCH_TOKENS // longest))
        yield order[:count]
        order = order[count:]
