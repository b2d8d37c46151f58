"""An engine whose logits are noise: whatever form its answers have, the constraint gave them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgesdk.engines.base import EngineInfo, Logits, Placement, Rows
from edgesdk.model import Model
from edgesdk.runtime import Runtime
from edgesdk.system.cancellation import CancellationToken
from edgesdk.text.prompts import PromptEncoder
from edgesdk.text.template import ChatTemplate
from edgesdk.text.tokenizer import Tokenizer

# Logits of this many more ids than the tokenizer has, as models with padded matrices give.
PADDING = 7
_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


class NoiseDecodeState:
    """Implements `Sequence`; the logits depend on the seed and the number of tokens only."""

    def __init__(self, table: Logits) -> None:
        self._table = table
        self._tokens: list[int] = []

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    hidden_states = None

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        self._tokens += [int(token) for token in np.atleast_1d(np.asarray(tokens))]
        length = len(self._tokens)
        row = self._table[length % len(self._table)].copy()
        # Shifted, so that it takes long until the same logits come again.
        row[:-PADDING] = np.roll(row[:-PADDING], 7 * length)
        return row[None]

    def rewind(self, length: int) -> None:
        del self._tokens[length:]

    def fork(self) -> NoiseDecodeState:
        raise NotImplementedError

    def save(self, path: Path) -> None:
        raise NotImplementedError

    def restore(self, path: Path) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class NoiseEngine:
    """Implements `Engine`. The padding ids have the highest logits."""

    def __init__(self, vocab_size: int, *, seed: int = 0, context_length: int = 100_000) -> None:
        shape = (61, vocab_size + PADDING)
        self._table = np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)
        self._table[:, vocab_size:] = 50
        self.info = EngineInfo("noise", "auto", Placement("cpu"), shape[1], context_length, 0.0)

    def new_state(self) -> NoiseDecodeState:
        return NoiseDecodeState(self._table)

    def close(self) -> None:
        pass


def noise_model(tokenizer: Tokenizer, *, seed: int = 0, context_length: int = 100_000) -> Model:
    """A model that answers noise in the tokens of `tokenizer`."""
    engine = NoiseEngine(tokenizer.vocab_size, seed=seed, context_length=context_length)
    encoder = PromptEncoder(tokenizer, ChatTemplate(_TEMPLATE), None, None)
    return Model("noise", Runtime(engine, encoder, 0.0))
