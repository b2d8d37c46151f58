"""Mask logits so that an answer follows a grammar, with llguidance."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from edgesdk.engines.base import Logits
from edgesdk.errors import InvalidOption, MissingExtra, StructureError
from edgesdk.generation.constraint import Constraint
from edgesdk.system.panics import panics_as
from edgesdk.text.tokenizer import Tokenizer


def load_llguidance() -> ModuleType:
    """Import the package `llguidance`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise MissingExtra(
            "llguidance", extra="structure", needed_for="An answer in a given format"
        ) from None
    return llguidance


class GrammarVocabulary:
    """A tokenizer's tokens in the form that llguidance needs. Making it takes a second.

    May be used by several threads.

    Raises:
        MissingExtra: llguidance is not installed.
        InvalidOption: the model has no token that ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        ends = sorted(tokenizer.eos_token_ids)
        if not ends:
            raise InvalidOption("This model names no token that ends an answer in a given format.")
        self._size = tokenizer.vocab_size
        self._tokens = load_llguidance().LLTokenizer(
            _TokenizerAdapter(tokenizer), n_vocab=self._size, eos_token=ends
        )

    def constraint(self, grammar: str) -> GrammarConstraint:
        """Follow one answer through a grammar.

        Raises:
            InvalidOption: the grammar allows no answer at all.
        """
        with panics_as("llguidance", InvalidOption):
            matcher = load_llguidance().LLMatcher(self._tokens, grammar, log_level=0)
            constraint = GrammarConstraint(matcher, self._tokens, self._size)
            has_answer = constraint.has_answer()
        if not has_answer:
            raise InvalidOption(
                f"No answer is possible in the format that was asked for.{_error_detail(matcher)}",
                hint="Check its parts against each other, and its characters against the model's"
                " vocabulary.",
            )
        return constraint


class GrammarConstraint:
    """Implements `edgesdk.generation.constraint.Constraint` over an `LLMatcher`.

    Args:
        matcher: at its start.
        tokens: the `LLTokenizer` that the matcher works on.
        size: ids that the tokenizer has; logits beyond them only pad the model's last matrix.
    """

    def __init__(self, matcher: Any, tokens: Any, size: int) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._size = size
        self._answer: list[int] = []

    def masked(self, logits: Logits) -> Logits:
        with panics_as("llguidance", self._failure):
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._size, bitorder="little").view(bool)
        if self._matcher.is_error() or not allowed.any():
            raise self._failure(
                f"The answer cannot go on in its format.{_error_detail(self._matcher)}"
            )
        masked = np.full_like(logits, -np.inf)
        shared = min(self._size, logits.size)
        np.copyto(masked[:shared], logits[:shared], where=allowed[:shared])
        return masked

    def accept(self, token: int) -> None:
        with panics_as("llguidance", self._failure):
            self._matcher.consume_token(token)
        self._answer.append(token)

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped()) and self.complete

    def _failure(self, message: str) -> StructureError:
        return StructureError(
            message,
            text=self._tokens.decode_str(self._answer),
            hint="Make the format simpler, without characters that the model has no tokens for.",
        )

    def has_answer(self) -> bool:
        """Whether an answer can start, or be empty."""
        return any(self._matcher.compute_bitmask()) and not self._matcher.is_error()


class EndedConstraint:
    """Implements `edgesdk.generation.constraint.Constraint` over another one, and ends the answer
    where it has said all that it will.

    Args:
        is_over: whether a text is such an answer.
        token_bytes: the text of a token.
    """

    def __init__(
        self,
        constraint: Constraint,
        is_over: Callable[[str], bool],
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._constraint = constraint
        self._is_over = is_over
        self._token_bytes = token_bytes
        self._text = b""
        self._over = False

    def masked(self, logits: Logits) -> Logits:
        return self._constraint.masked(logits)

    def accept(self, token: int) -> None:
        self._constraint.accept(token)
        self._text += self._token_bytes(token)
        self._over = self._is_over(self._text.decode("utf-8", "replace"))

    @property
    def complete(self) -> bool:
        return self._over or self._constraint.complete

    @property
    def finished(self) -> bool:
        return self._over or self._constraint.finished


class _TokenizerAdapter:
    """Our tokenizer behind the interface that `LLTokenizer` expects."""

    bos_token_id = None
    # `LLTokenizer` takes only objects that say so.
    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        ends = sorted(tokenizer.eos_token_ids)
        self.eos_token_id = ends[0]
        self.special_token_ids = ends
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        self._tokenizer = tokenizer
        self._ids = {piece: token for token, piece in enumerate(self.tokens) if piece}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: str) -> list[int]:
        """Spell `text` in ids; llguidance asks where the grammar allows nothing else."""
        ids = self._tokenizer.encode(text)
        data = text.encode()
        # A control token's name in the text became that token, which stands for no text.
        spelled = b"".join(self.tokens[token] for token in ids)
        return ids if spelled == data else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        """Spell bytes with the longest tokens first, as far as tokens are there."""
        ids: list[int] = []
        at = 0
        while at < len(data):
            pieces = (data[at:end] for end in range(min(len(data), at + self._longest), at, -1))
            piece = next((piece for piece in pieces if piece in self._ids), None)
            if piece is None:
                break
            ids.append(self._ids[piece])
            at += len(piece)
        return ids


def _error_detail(matcher: Any) -> str:
    reason = matcher.get_error().split("\n", 1)[0].strip()
    return f" ({reason})" if reason else ""
