"""What a bundle with graphs of fixed shapes takes in memory.

The factors were measured with onnxruntime 1.32 on Linux x86-64 (SmolLM2-135M in 16 and 4 bits).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.npu.static_engine import static_bundle
from edgesdk.system.plan import MIB, PROCESS_BYTES, MemoryNeed

_RUNTIME_BYTES = 65 * MIB
_TOKENIZER_BYTES_PER_ENTRY = 750
# A runtime keeps what it made of the weights for each of the two graphs.
_GRAPHS = 2.0
# Beside that, the CPU turns every weight into float32.
_ON_CPU = 2.7


@dataclass(frozen=True)
class StaticFootprint:
    """Implements `edgesdk.system.plan.Footprint`.

    Attributes:
        weights_bytes: size of the weights' file.
        held: how many times that is held.
        window_bytes: of the KV window, which is there from the start.
        call_bytes: of the inputs and outputs of a prefill call.
    """

    context_length: int
    kv_bytes_per_token: int
    weights_bytes: int
    held: float
    window_bytes: int
    call_bytes: int
    vocab_size: int

    @property
    def read_bytes_per_token(self) -> int:
        return self.weights_bytes

    def need(self, context: int) -> MemoryNeed:
        return MemoryNeed(
            process=PROCESS_BYTES,
            runtime=_RUNTIME_BYTES + self.vocab_size * _TOKENIZER_BYTES_PER_ENTRY,
            weights=int(self.weights_bytes * self.held),
            kv_cache=self.window_bytes,
            scratch=self.call_bytes,
        )


def footprint(source: Bundle | Path) -> StaticFootprint:
    """The footprint on an NPU.

    Raises:
        EngineError: `source` is no bundle.
        UnsupportedBundle: it has no graphs of fixed shapes.
    """
    return _footprint(source, _GRAPHS)


def footprint_on_cpu(source: Bundle | Path) -> StaticFootprint:
    """The footprint where the CPU stands in; raises as `footprint` does."""
    return _footprint(source, _GRAPHS * _ON_CPU)


def _footprint(source: Bundle | Path, held: float) -> StaticFootprint:
    bundle, sizes, spec = static_bundle(source)
    shape = bundle.manifest.shape
    number = np.dtype(sizes.dtype).itemsize
    per_token = shape.kv_bytes_per_token(number)
    columns = sizes.window + sizes.prefill_tokens
    scores = sizes.prefill_tokens * columns * spec.heads
    return StaticFootprint(
        context_length=shape.context_length,
        kv_bytes_per_token=per_token,
        weights_bytes=sum(file.size for file in bundle.manifest.files),
        held=held,
        window_bytes=sizes.window * per_token,
        call_bytes=sizes.prefill_tokens * per_token
        + number * (scores + sizes.logits_rows * spec.vocab_size),
        vocab_size=spec.vocab_size,
    )
