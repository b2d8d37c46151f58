"""What a LiteRT bundle takes in memory on the CPU.

The factors come from what the interpreter holds, and give the peaks that were measured with LiteRT
2.3 on Linux x86-64 (SmolLM2-135M, 8 and 4 bits, a window of 1,024) to within a tenth.
"""

from __future__ import annotations

from pathlib import Path

from edgesdk.bundle.opening import Bundle
from edgesdk.errors import EngineError
from edgesdk.system.plan import MIB, PROCESS_BYTES, FixedFootprint, MemoryNeed

_RUNTIME_BYTES = 40 * MIB
_TOKENIZER_BYTES_PER_ENTRY = 750
# The file, which is mapped, and a copy in the kernels' own layout for each signature of layers.
_COPIES_OF_WEIGHTS = 3
# "prefill" and "decode" each have their inputs and outputs; a state has those of the last call, and
# until it ends those that the call took.
_COPIES_OF_CACHES = 6


def footprint(source: Bundle | Path) -> FixedFootprint:
    """The footprint of a LiteRT bundle.

    Raises:
        EngineError: `source` is no bundle, or does not say its static shapes.
    """
    if not isinstance(source, Bundle) or source.manifest.static is None:
        where = source.path if isinstance(source, Bundle) else source
        raise EngineError(
            f"{where} is not a LiteRT bundle.", hint="Export the model with --target litert."
        )
    shape, static = source.manifest.shape, source.manifest.static
    per_token = shape.kv_bytes_per_token()
    weights = source.role_file("decoder").stat().st_size
    scores = 2 * shape.heads * static.window
    return FixedFootprint(
        context_length=shape.context_length,
        kv_bytes_per_token=per_token,
        read_bytes_per_token=weights,
        memory=MemoryNeed(
            process=PROCESS_BYTES,
            runtime=_RUNTIME_BYTES + shape.vocab_size * _TOKENIZER_BYTES_PER_ENTRY,
            weights=_COPIES_OF_WEIGHTS * weights,
            # The window is taken whole, however much of it a conversation fills.
            kv_cache=_COPIES_OF_CACHES * static.window * per_token,
            scratch=4 * static.prefill_tokens * (scores + 2 * shape.vocab_size),
        ),
    )
