"""Where a draft gets its decode state from, and where the state goes afterwards."""

from __future__ import annotations

import threading
from typing import Protocol

from edgesdk.engines.base import DecodeState, Engine


class DecodeStates(Protocol):
    """Lends decode states to drafts. What a state already holds is not computed again."""

    def take(self, prompt: list[int]) -> DecodeState:
        """The state to answer `prompt` on; release it, or close it."""

    def release(self, state: DecodeState) -> None:
        """The draft that took it is done."""


class NewStates:
    """Implements `DecodeStates` for single requests: each draft gets a new state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, prompt: list[int]) -> DecodeState:
        return self._engine.new_state()

    def release(self, state: DecodeState) -> None:
        state.close()


class ConversationState:
    """Implements `DecodeStates` for a conversation: its latest state waits for the next turn.

    Args:
        state: holds some of it already; belongs to this from now on.
    """

    def __init__(self, engine: Engine, state: DecodeState | None = None) -> None:
        self._engine = engine
        self._state = state
        self._guard = threading.Lock()

    def take(self, prompt: list[int]) -> DecodeState:
        with self._guard:
            found, self._state = self._state, None
        return self._engine.new_state() if found is None else found

    def release(self, state: DecodeState) -> None:
        with self._guard:
            old, self._state = self._state, state
        if old is not None:
            old.close()

    def fork(self) -> ConversationState:
        """A copy with the same KV cache."""
        with self._guard:
            twin = None if self._state is None else self._state.fork()
        return ConversationState(self._engine, twin)

    def close(self) -> None:
        """Free the KV cache."""
        with self._guard:
            old, self._state = self._state, None
        if old is not None:
            old.close()


class SharedState:
    """Implements `DecodeStates` for the drafts of one answer, which all use one state.

    Args:
        lender: gets it back at the end.
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
        """Give the state back: no more drafts."""
        if self._held is not None:
            self._lender.release(self._held)
            self._held = None
