"""What a model takes in memory, as its engine's own formula says before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MIB = 2**20
# A Python process with edgesdk imported, before it loads a model (measured on Linux x86-64).
PROCESS_BYTES = 50 * MIB


@dataclass(frozen=True)
class MemoryNeed:
    """Most resident memory of a process that fills one context, in bytes.

    Attributes:
        process: the interpreter and edgesdk itself.
        runtime: the engine's library, the tokenizer.
        weights: with the copies that the engine makes in a layout of its own.
        kv_cache: of a context full of tokens.
        scratch: activations of a prefill chunk, and copies that exist while a KV cache grows or
            a model loads.
    """

    process: int
    runtime: int
    weights: int
    kv_cache: int
    scratch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.process + self.runtime + self.weights + self.kv_cache + self.scratch


class Footprint(Protocol):
    """What is known of a model's memory."""

    @property
    def context_length(self) -> int:
        """Most tokens that the model was trained for."""

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache of one token."""

    @property
    def read_bytes_per_token(self) -> int:
        """Bytes of weights that each decoded token reads."""

    def need(self, context: int) -> MemoryNeed:
        """What one context of that many tokens takes at its worst moment."""
