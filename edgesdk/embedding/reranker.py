"""A loaded cross-encoder: it reads a query and a document together, and scores them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgesdk.bundle.manifest import RerankingEntry
from edgesdk.embedding.token_rows import RowTokenizer, rows_of
from edgesdk.engines.base import EngineInfo
from edgesdk.engines.encoder_engine import EncoderEngine
from edgesdk.errors import InvalidOption
from edgesdk.system.closing import Closeable


@dataclass(frozen=True)
class RankedDocument:
    """A document's place.

    Attributes:
        index: its place in the list that came in.
        score: how well it fits; from 0 to 1 with most models.
    """

    index: int
    score: float
    document: str


class Reranker(Closeable):
    """Ranks documents for a query; `edgesdk.load_reranker` makes one. May be used by several
    threads.

    Attributes:
        name: the model's.
        max_tokens: most tokens of a query and a document together, special ones included.
    """

    def __init__(
        self, name: str, engine: EncoderEngine, tokenizer: RowTokenizer, entry: RerankingEntry
    ) -> None:
        self.name = name
        self.max_tokens = min(entry.max_tokens, engine.info.context_length)
        self._engine = engine
        self._tokenizer = tokenizer
        self._entry = entry

    @property
    def info(self) -> EngineInfo:
        """What runs, and where."""
        return self._engine.info

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top: int | None = None,
        truncate: bool = False,
    ) -> list[RankedDocument]:
        """The documents, the best first.

        Args:
            top: only so many of them.
            truncate: cut what is too long, at its end: the query or the document, whichever is
                the longer one.

        Raises:
            ContextOverflow: a pair is longer than `max_tokens`, and not to be cut.
            InvalidOption: `top` is less than 1.
            InvalidText: a text has a lone surrogate.
            EngineError: the engine failed, or is closed.
        """
        if top is not None and top < 1:
            raise InvalidOption(f"top must be at least 1, not {top}.")
        if not documents:
            return []
        pairs = [(query, document) for document in documents]
        rows = rows_of(self._tokenizer, pairs, limit=self.max_tokens, truncate=truncate)
        scores = self._engine.scores(rows)[:, 0].astype(np.float64)
        if self._entry.sigmoid:
            scores = 1 / (1 + np.exp(-scores))
        order = np.argsort(-scores, kind="stable")[:top]
        return [RankedDocument(int(at), float(scores[at]), documents[at]) for at in order]

    async def arank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top: int | None = None,
        truncate: bool = False,
    ) -> list[RankedDocument]:
        """`rank` for asyncio."""
        return await asyncio.to_thread(self.rank, query, documents, top=top, truncate=truncate)

    def count(self, query: str, document: str) -> int:
        """Tokens of a query and a document together."""
        return len(self._tokenizer.row((query, document)).ids)

    def close(self) -> None:
        """Free the model."""
        self._engine.close()
