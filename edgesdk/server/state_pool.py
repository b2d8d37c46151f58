"""The idle KV caches of one model, so that a conversation's next request computes little.

A request carries the whole conversation. The sequence that answered its last turn holds most of
those tokens, and the decode loop computes only what comes after the longest common prefix.
"""

from __future__ import annotations

import threading

from edgesdk.engines.base import DecodeState, Engine
from edgesdk.generation.loop import common_prefix

# Copying a KV cache is worth it from about here; a shorter beginning is computed sooner.
_MIN_FORK_TOKENS = 64


class StatePool:
    """Idle sequences, the one used longest ago first. May be used by several threads.

    Args:
        limit: most sequences that are kept.
    """

    def __init__(self, engine: Engine, limit: int) -> None:
        self._engine = engine
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: list[DecodeState] = []

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, prompt: list[int]) -> DecodeState:
        """The sequence to answer `prompt` on; give it back, or close it.

        Raises:
            EngineError: the engine failed.
        """
        with self._lock:
            shared = [common_prefix(state.tokens, prompt) for state in self._idle]
            best = max(range(len(shared)), key=shared.__getitem__, default=None)
            if best is None or shared[best] == 0:
                return self._engine.new_state()
            found, common = self._idle[best], shared[best]
            if 2 * common < len(found.tokens):
                # Another conversation, with the same beginning: it is not to lose its own.
                return found.fork() if common >= _MIN_FORK_TOKENS else self._engine.new_state()
            return self._idle.pop(best)

    def release(self, state: DecodeState) -> None:
        """Keep a sequence for later; the one used longest ago makes room."""
        with self._lock:
            self._idle.append(state)
            surplus = self._idle[: max(0, len(self._idle) - self._limit)]
            del self._idle[: len(surplus)]
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Free all of them."""
        with self._lock:
            idle, self._idle = self._idle, []
        for state in idle:
            state.close()
