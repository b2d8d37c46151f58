"""Where a draft's KV cache comes from, and where it goes afterwards."""

from __future__ import annotations

import threading
from typing import Protocol

from edgesdk.engines.base import Engine, Sequence


class Sequences(Protocol):
    """Lends sequences to drafts. Of those it keeps, the beginning need not be computed again."""

    def take(self, prompt: list[int]) -> Sequence:
        """The sequence to answer `prompt` on; give it back, or close it."""

    def give_back(self, sequence: Sequence) -> None:
        """A draft is done with it."""


class FreshSequences:
    """Implements `Sequences` for questions that nothing follows: each draft gets a new one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, prompt: list[int]) -> Sequence:
        return self._engine.sequence()

    def give_back(self, sequence: Sequence) -> None:
        sequence.close()


class KeptSequence:
    """Implements `Sequences` for a conversation: its latest sequence waits for the next turn.

    Args:
        kept: has some of it already; belongs to this from now on.
    """

    def __init__(self, engine: Engine, kept: Sequence | None = None) -> None:
        self._engine = engine
        self._kept = kept
        self._guard = threading.Lock()

    def take(self, prompt: list[int]) -> Sequence:
        with self._guard:
            found, self._kept = self._kept, None
        return self._engine.sequence() if found is None else found

    def give_back(self, sequence: Sequence) -> None:
        with self._guard:
            old, self._kept = self._kept, sequence
        if old is not None:
            old.close()

    def fork(self) -> KeptSequence:
        """Another one with the same in its KV cache."""
        with self._guard:
            twin = None if self._kept is None else self._kept.fork()
        return KeptSequence(self._engine, twin)

    def close(self) -> None:
        """Free the KV cache."""
        with self._guard:
            old, self._kept = self._kept, None
        if old is not None:
            old.close()


class LentSequence:
    """Implements `Sequences` for several drafts of one answer: all of them are made on one.

    Args:
        lender: gets it back in the end.
    """

    def __init__(self, lender: Sequences) -> None:
        self._lender = lender
        self._held: Sequence | None = None

    def take(self, prompt: list[int]) -> Sequence:
        found, self._held = self._held, None
        return self._lender.take(prompt) if found is None else found

    def give_back(self, sequence: Sequence) -> None:
        self._held = sequence

    def end(self) -> None:
        """No more drafts."""
        if self._held is not None:
            self._lender.give_back(self._held)
            self._held = None
