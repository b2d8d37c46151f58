"""Where a draft gets its decode state from, and where the state goes afterwards."""

from __future__ import annotations

import threading
from typing import Protocol

from edgesdk.engines.base import DecodeState, Engine


class DecodeStates(Protocol):
    """Lends sequences to drafts. Of those it keeps, the beginning need not be computed again."""

    def take(self, prompt: list[int]) -> DecodeState:
        """The sequence to answer `prompt` on; give it back, or close it."""

    def release(self, state: DecodeState) -> None:
        """A draft is done with it."""


class NewStates:
    """Implements `DecodeStates` for questions that nothing follows: each draft gets a new one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, prompt: list[int]) -> DecodeState:
        return self._engine.new_state()

    def release(self, state: DecodeState) -> None:
        state.close()


class ConversationState:
    """Implements `DecodeStates` for a conversation: its latest sequence waits for the next turn.

    Args:
        kept: has some of it already; belongs to this from now on.
    """

    def __init__(self, engine: Engine, kept: DecodeState | None = None) -> None:
        self._engine = engine
        self._kept = kept
        self._guard = threading.Lock()

    def take(self, prompt: list[int]) -> DecodeState:
        with self._guard:
            found, self._kept = self._kept, None
        return self._engine.new_state() if found is None else found

    def release(self, state: DecodeState) -> None:
        with self._guard:
            old, self._kept = self._kept, state
        if old is not None:
            old.close()

    def fork(self) -> ConversationState:
        """Another one with the same in its KV cache."""
        with self._guard:
            twin = None if self._kept is None else self._kept.fork()
        return ConversationState(self._engine, twin)

    def close(self) -> None:
        """Free the KV cache."""
        with self._guard:
            old, self._kept = self._kept, None
        if old is not None:
            old.close()


class SharedState:
    """Implements `DecodeStates` for several drafts of one answer: all of them are made on one.

    Args:
        lender: gets it back in the end.
    """

    def __init__(self, lender: DecodeStates) -> None:
        self._lender = lender
        self._held: DecodeState | None = None

    def take(self, prompt: list[int]) -> DecodeState:
        found, self._held = self._held, None
        return self._lender.take(prompt) if found is None else found

    def release(self, state: DecodeState) -> None:
        self._held = state

    def end(self) -> None:
        """No more drafts."""
        if self._held is not None:
            self._lender.release(self._held)
            self._held = None
