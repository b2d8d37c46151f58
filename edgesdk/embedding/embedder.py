"""A loaded model that makes vectors of texts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgesdk.bundle.manifest import EmbeddingEntry, Pooling
from edgesdk.embedding.token_rows import RowTokenizer, rows_of, too_long
from edgesdk.engines.base import EngineInfo, HiddenStates
from edgesdk.engines.encoder_engine import EncoderEngine, TokenRow
from edgesdk.errors import InvalidOption, RequestError
from edgesdk.system.closing import Closeable

Vectors = npt.NDArray[np.float32]


class Embedder(Closeable):
    """Makes vectors of texts; `edgesdk.load_embedder` makes one. May be used by several threads.

    Attributes:
        name: the model's.
        dimensions: numbers of a vector.
        max_tokens: most tokens of a text, its prompt and special tokens included.
        prompts: what can be put before a text, by the name of its purpose ("query").
    """

    def __init__(
        self,
        name: str,
        engine: EncoderEngine,
        tokenizer: RowTokenizer,
        entry: EmbeddingEntry,
        *,
        dimensions: int,
    ) -> None:
        self.name = name
        self.dimensions = dimensions
        self.max_tokens = min(entry.max_tokens, engine.info.context_length)
        self.prompts: Mapping[str, str] = dict(entry.prompts)
        self._engine = engine
        self._tokenizer = tokenizer
        self._entry = entry

    @property
    def info(self) -> EngineInfo:
        """What runs, and where."""
        return self._engine.info

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        dimensions: int | None = None,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> Vectors:
        """The vectors of texts, float32 [texts, dimensions]; of one text, [1, dimensions].

        They have the length 1 where the model is made so, as most are, and always where
        `dimensions` is given.

        Args:
            dimensions: so many of the first numbers, for models that are trained for that
                (Kusupati et al., 2022, arXiv:2205.13147).
            prompt: the name of one of `prompts`, which is put before each text; "" puts none
                there. None takes the model's own default.
            truncate: cut a text that is too long, at its end.

        Raises:
            ContextOverflow: a text is longer than `max_tokens`, and not to be cut.
            InvalidOption: there is no such prompt, or `dimensions` is not from 1 to `dimensions`.
            InvalidText: a text has a lone surrogate.
            EngineError: the engine failed, or is closed.
        """
        rows = self.tokenize(texts, prompt=prompt, truncate=truncate)
        return self.embed_tokens(rows, dimensions=dimensions)

    def tokenize(
        self, texts: str | Sequence[str], *, prompt: str | None = None, truncate: bool = False
    ) -> list[tuple[int, ...]]:
        """The token ids of texts, as `embed_tokens` takes them; see `embed`."""
        before = self._prompt(prompt)
        given = [before + text for text in ([texts] if isinstance(texts, str) else texts)]
        rows = rows_of(self._tokenizer, given, limit=self.max_tokens, truncate=truncate)
        return [row.ids for row in rows]

    def embed_tokens(
        self, rows: Sequence[Sequence[int]], *, dimensions: int | None = None
    ) -> Vectors:
        """The vectors of token ids as they are: prompts and special tokens are the caller's.

        Raises:
            RequestError: a row is empty, or has an id outside the vocabulary.
            ContextOverflow, InvalidOption, EngineError: as `embed`.
        """
        wanted = self.dimensions if dimensions is None else dimensions
        if not 1 <= wanted <= self.dimensions:
            raise InvalidOption(
                f"dimensions must be between 1 and {self.dimensions}, not {dimensions}."
            )
        for place, row in enumerate(rows):
            if len(row) > self.max_tokens:
                raise too_long(place, len(row), self.max_tokens)
        if not rows:
            return np.empty((0, wanted), np.float32)
        states = self._engine.hidden_states([TokenRow(tuple(row)) for row in rows])
        vectors = np.stack([_pooled(each, self._entry.pooling) for each in states])[:, :wanted]
        if self._entry.normalize or dimensions is not None:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.float32(1e-12))
        return vectors

    async def aembed(
        self,
        texts: str | Sequence[str],
        *,
        dimensions: int | None = None,
        prompt: str | None = None,
        truncate: bool = False,
    ) -> Vectors:
        """`embed` for asyncio."""
        return await asyncio.to_thread(
            self.embed, texts, dimensions=dimensions, prompt=prompt, truncate=truncate
        )

    def count(self, text: str, *, prompt: str | None = None) -> int:
        """Tokens of a text, with its prompt and special tokens."""
        return len(self._tokenizer.row(self._prompt(prompt) + text).ids)

    @staticmethod
    def similarity(some: npt.ArrayLike, others: npt.ArrayLike) -> Vectors:
        """The cosine of each of some vectors [n, d] with each of others [m, d], float32 [n, m].

        Raises:
            RequestError: they are of other shapes, or differ in d.
        """
        left, right = (np.atleast_2d(np.asarray(each, np.float32)) for each in (some, others))
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
            raise RequestError(
                f"Vectors of shapes {left.shape} and {right.shape} cannot be compared."
            )
        left, right = (
            each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), np.float32(1e-12))
            for each in (left, right)
        )
        cosines: Vectors = left @ right.T
        return cosines

    def close(self) -> None:
        """Free the model."""
        self._engine.close()

    def _prompt(self, name: str | None) -> str:
        name = self._entry.default_prompt if name is None else name
        if not name:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise InvalidOption(
                f"{self.name} has no prompt {name!r}.",
                hint=f"It has: {known}. Any other text can be put before the texts themselves.",
            )
        return self.prompts[name]


def _pooled(states: HiddenStates, pooling: Pooling) -> npt.NDArray[np.float32]:
    place = 0 if pooling == "cls" else -1
    pooled: npt.NDArray[np.float32] = states.mean(0) if pooling == "mean" else states[place]
    return pooled
