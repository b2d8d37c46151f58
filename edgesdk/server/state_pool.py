"""Keeps idle decode states, so that the next turn of a conversation computes little."""

from __future__ import annotations

import threading

from edgesdk.engines.base import DecodeState, Engine
from edgesdk.generation.prefill import common_prefix

# Copying a KV cache is worth it from about here; a shorter beginning is computed sooner.
_MIN_FORK_TOKENS = 64


class StatePool:
    """Keeps the idle decode states of one model, so that a conversation's next request computes
    little. May be used by several threads.

    A request carries the whole conversation. The state that answered its last turn holds most of
    those tokens, and the decode loop computes only what comes after the longest common prefix.

    Args:
        max_states: most states that are kept; the one used longest ago makes room.
    """

    def __init__(self, max_states: int) -> None:
        self._max_states = max_states
        self._lock = threading.Lock()
        self._idle: list[tuple[Engine, DecodeState]] = []

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, engine: Engine, prompt: list[int]) -> DecodeState:
        """The state of an engine to answer `prompt` on; release it, or close it. Those of other
        engines are freed: the model has moved to this one.

        Raises:
            EngineError: the engine failed.
        """
        with self._lock:
            left = [state for of, state in self._idle if of is not engine]
            self._idle = [each for each in self._idle if each[0] is engine]
            for state in left:
                state.close()
            shared = [common_prefix(state.tokens, prompt) for _, state in self._idle]
            best = max(range(len(shared)), key=shared.__getitem__, default=None)
            if best is None or shared[best] == 0:
                return engine.new_state()
            found, common = self._idle[best][1], shared[best]
            if 2 * common < len(found.tokens):
                # Another conversation, with the same beginning: it is not to lose its own.
                return found.fork() if common >= _MIN_FORK_TOKENS else engine.new_state()
            del self._idle[best]
            return found

    def release(self, engine: Engine, state: DecodeState) -> None:
        """Keep a state for later; the one used longest ago makes room."""
        with self._lock:
            self._idle.append((engine, state))
            surplus = self._idle[: max(0, len(self._idle) - self._max_states)]
            del self._idle[: len(surplus)]
        for _, old in surplus:
            old.close()

    def close(self) -> None:
        """Free all of them."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, state in idle:
            state.close()
