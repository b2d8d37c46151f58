"""What a bundle with graphs of fixed shapes takes in memory.

The factors were measured with onnxruntime 1.32 on Linux x86-64 (SmolLM2-135M in 16 and 4 bits).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.npu.static_engine import static_bundle
from edgesdk.system.plan import MIB, PROCESS_BYTES, FixedFootprint, MemoryNeed

_RUNTIME_BYTES = 65 * MIB
_TOKENIZER_BYTES_PER_ENTRY = 750
# A runtime keeps what it made of the weights for each of the two graphs.
_GRAPHS = 2.0
# Beside that, the CPU turns every weight into float32.
_ON_CPU = 2.7


def footprint(source: Bundle | Path) -> FixedFootprint:
    """The footprint on an NPU.

    Raises:
        EngineError: `source` is no bundle.
        UnsupportedBundle: it has no graphs of fixed shapes.
    """
    return _footprint(source, _GRAPHS)


def footprint_on_cpu(source: Bundle | Path) -> FixedFootprint:
    """The footprint where the CPU stands in; raises as `footprint` does."""
    return _footprint(source, _GRAPHS * _ON_CPU)


def _footprint(source: Bundle | Path, held: float) -> FixedFootprint:
    """The footprint where the weights' file is held so many times."""
    bundle, sizes, spec = static_bundle(source)
    shape = bundle.manifest.shape
    number = np.dtype(sizes.dtype).itemsize
    per_token = shape.kv_bytes_per_token(number)
    columns = sizes.window + sizes.prefill_tokens
    scores = sizes.prefill_tokens * columns * spec.heads
    weights = sum(file.size for file in bundle.manifest.files)
    return FixedFootprint(
        context_length=shape.context_length,
        kv_bytes_per_token=per_token,
        read_bytes_per_token=weights,
        memory=MemoryNeed(
            process=PROCESS_BYTES,
            runtime=_RUNTIME_BYTES + spec.vocab_size * _TOKENIZER_BYTES_PER_ENTRY,
            weights=int(weights * held),
            # The window is there from the start.
            kv_cache=sizes.window * per_token,
            # The inputs and outputs of a prefill call.
            scratch=sizes.prefill_tokens * per_token
            + number * (scores + sizes.logits_rows * spec.vocab_size),
        ),
    )
