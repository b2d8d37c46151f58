"""Ask teachers for their next-token distributions.

A teacher is a transformers model, or whatever the runtime runs: a bundle or a GGUF, so that a
quantized model of 7 billion parameters can teach on a laptop. `endpoint_teacher` has those that run
elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.base import Engine
from edgesdk.engines.registry import open_engine
from edgesdk.errors import VocabulariesDiffer
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.distill.divergence import TeacherTokens


class Teacher(Protocol):
    """Gives the next-token distribution after each token of a sequence."""

    @property
    def identity(self) -> str:
        """What its answers depend on: its weights and how they are computed. Equal teachers have
        equal identities, today and later."""

    @property
    def vocab_size(self) -> int:
        """How many tokens its logits have."""

    @property
    def most_tokens(self) -> int:
        """How many of its likeliest tokens it gives at most; `vocab_size` where it gives all."""

    def tokens(self, ids: Sequence[int], k: int) -> TeacherTokens:
        """Its `k` likeliest tokens after each token of `ids`; `most_tokens` where that is fewer."""


class ModelTeacher:
    """A transformers model that teaches. It shares the student's device."""

    def __init__(self, model: Any, identity: str) -> None:
        self.model = model.eval()
        self._identity = identity

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def most_tokens(self) -> int:
        return self.vocab_size

    def tokens(self, ids: Sequence[int], k: int) -> TeacherTokens:
        """See `Teacher.tokens`."""
        batch = torch.tensor([list(ids)], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=batch, use_cache=False).logits[0]
        return likeliest(logits.float(), k)


class EngineTeacher:
    """A bundle or a bare GGUF that teaches, on the engine that runs it in an app."""

    def __init__(self, source: Bundle | Path, *, threads: int | None = None) -> None:
        self._engine: Engine = open_engine(source, threads=threads)
        digest = source.sha256 if isinstance(source, Bundle) else open_checkpoint(source).sha256()
        self._identity = f"{self._engine.info.name} {digest}"

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def vocab_size(self) -> int:
        return self._engine.info.vocab_size

    @property
    def most_tokens(self) -> int:
        return self.vocab_size

    def tokens(self, ids: Sequence[int], k: int) -> TeacherTokens:
        """See `Teacher.tokens`."""
        state = self._engine.new_state()
        try:
            logits = torch.from_numpy(state.extend(list(ids), logits="all").copy())
        finally:
            state.close()
        return likeliest(logits, k)

    def close(self) -> None:
        """Free the model."""
        self._engine.close()


def likeliest(logits: torch.Tensor, k: int) -> TeacherTokens:
    """The `k` likeliest tokens of float32 logits [positions, vocab]."""
    vocab_size = logits.shape[-1]
    log_probs = logits.log_softmax(-1)
    if k >= vocab_size:
        every = torch.arange(vocab_size, device=logits.device).expand(logits.shape[0], -1)
        return TeacherTokens(every, log_probs, vocab_size)
    best = log_probs.topk(k, dim=-1)
    return TeacherTokens(best.indices, best.values, vocab_size)


def require_same_vocabulary(teacher: bytes, student: bytes) -> None:
    """Raise where two `tokenizer.json` do not give the same tokens the same ids.

    Sizes alone say nothing: two vocabularies of 32,000 tokens train without an error, and wrong.

    Raises:
        VocabulariesDiffer: the message names a token that tells them apart.
    """
    from tokenizers import Tokenizer

    ours, theirs = (
        Tokenizer.from_str(text.decode()).get_vocab(with_added_tokens=True)
        for text in (student, teacher)
    )
    if ours == theirs:
        return
    token = min(
        (token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)),
        key=lambda token: (ours.get(token, theirs.get(token, 0)), token),
    )
    raise VocabulariesDiffer(
        f"Teacher and student have different vocabularies: {token!r} is token {theirs.get(token)}"
        f" of the teacher's and {ours.get(token)} of the student's.",
        hint="Let the teacher write answers instead, and train on those.",
    )
