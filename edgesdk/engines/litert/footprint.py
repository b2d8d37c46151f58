"""What a LiteRT bundle takes in memory on the CPU.

The factors come from what the interpreter holds, and give the peaks that were measured with LiteRT
2.3 on Linux x86-64 (SmolLM2-135M, 8 and 4 bits, a window of 1,024) to within a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgesdk.bundle.opening import Bundle
from edgesdk.errors import EngineError
from edgesdk.system.plan import MIB, PROCESS_BYTES, MemoryNeed

_RUNTIME_BYTES = 40 * MIB
_TOKENIZER_BYTES_PER_ENTRY = 750
# The file, which is mapped, and a copy in the kernels' own layout for each signature of layers.
_COPIES_OF_WEIGHTS = 3
# "prefill" and "decode" each have their inputs and outputs; a state has those of the last call, and
# until it ends those that the call took.
_COPIES_OF_CACHES = 6


@dataclass(frozen=True)
class LitertFootprint:
    """Implements `edgesdk.system.plan.Footprint`. The window is taken whole, however much of it a
    conversation fills."""

    context_length: int
    kv_bytes_per_token: int
    weights_bytes: int
    window: int
    prefill_tokens: int
    heads: int
    vocab_size: int

    @property
    def read_bytes_per_token(self) -> int:
        return self.weights_bytes

    def need(self, context: int) -> MemoryNeed:
        scores = 2 * self.heads * self.window
        return MemoryNeed(
            process=PROCESS_BYTES,
            runtime=_RUNTIME_BYTES + self.vocab_size * _TOKENIZER_BYTES_PER_ENTRY,
            weights=_COPIES_OF_WEIGHTS * self.weights_bytes,
            kv_cache=_COPIES_OF_CACHES * self.window * self.kv_bytes_per_token,
            scratch=4 * self.prefill_tokens * (scores + 2 * self.vocab_size),
        )


def footprint(source: Bundle | Path) -> LitertFootprint:
    """The footprint of a LiteRT bundle.

    Raises:
        EngineError: `source` is no bundle, or does not say its static shapes.
    """
    if not isinstance(source, Bundle) or source.manifest.static is None:
        where = source.path if isinstance(source, Bundle) else source
        raise EngineError(
            f"{where} is not a LiteRT bundle.", hint="Export the model with --target litert."
        )
    manifest, static = source.manifest, source.manifest.static
    return LitertFootprint(
        context_length=manifest.shape.context_length,
        kv_bytes_per_token=manifest.shape.kv_bytes_per_token(),
        weights_bytes=source.role_file("decoder").stat().st_size,
        window=static.window,
        prefill_tokens=static.prefill_tokens,
        heads=manifest.shape.heads,
        vocab_size=manifest.shape.vocab_size,
    )
