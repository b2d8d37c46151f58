"""What an ONNX bundle takes in memory on the CPU.

The constants are fitted to peaks measured with onnxruntime 1.31 on Linux x86-64 (SmolLM2-135M and
Qwen2.5-Coder-1.5B, 4 bits, 255 to 4,096 tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgesdk.bundle.opening import Bundle
from edgesdk.engines.onnx.kv_cache import MIN_CAPACITY
from edgesdk.errors import EngineError
from edgesdk.system.plan import MIB, PROCESS_BYTES, MemoryNeed

# onnxruntime's library and its arena, and what a session is made of.
_RUNTIME_BYTES = 65 * MIB
_TOKENIZER_BYTES_PER_ENTRY = 750
# Packing adds a sum to each block of weights, and leaves holes in the heap.
_PACKED = 1.10
# What is gone once the model is loaded: the parsed tokenizer file, unpacked weights.
_LOADING_BYTES_PER_ENTRY = 250
_LOADING_WEIGHTS = 0.05
_CHUNK = 512
# Attention scores grow from chunk to chunk; the arena keeps some of the smaller regions before.
_ARENA = 1.5


@dataclass(frozen=True)
class OnnxFootprint:
    """Implements `edgesdk.system.plan.Footprint`.

    Attributes:
        weights_bytes: size of the model files.
        embedding_bytes: about what of it is only gathered from, a row for each token.
    """

    context_length: int
    kv_bytes_per_token: int
    weights_bytes: int
    embedding_bytes: int
    heads: int
    hidden_size: int
    vocab_size: int

    @property
    def read_bytes_per_token(self) -> int:
        return self.weights_bytes - self.embedding_bytes

    def need(self, context: int) -> MemoryNeed:
        chunk = min(context, _CHUNK)
        scores = int(4 * chunk * self.heads * context * _ARENA)
        activations = scores + 4 * chunk * 4 * self.hidden_size
        kv_cache = context * self.kv_bytes_per_token
        # The last time that a cache of doubled capacity took over, both were full of tokens.
        before = MIN_CAPACITY
        while 2 * before < context:
            before *= 2
        growth = max(0, 2 * before - context) * self.kv_bytes_per_token if before < context else 0
        loading = int(
            self.vocab_size * _LOADING_BYTES_PER_ENTRY + self.weights_bytes * _LOADING_WEIGHTS
        )
        return MemoryNeed(
            process=PROCESS_BYTES,
            runtime=_RUNTIME_BYTES + self.vocab_size * _TOKENIZER_BYTES_PER_ENTRY,
            weights=int(self.weights_bytes * _PACKED),
            kv_cache=kv_cache,
            scratch=max(growth + activations, loading - kv_cache),
        )


def footprint(source: Bundle | Path) -> OnnxFootprint:
    """The footprint of an ONNX bundle.

    Raises:
        EngineError: `source` is no bundle.
    """
    if not isinstance(source, Bundle):
        raise EngineError(f"{source} is not a bundle.", hint="Export the model to a bundle first.")
    manifest = source.manifest
    shape, entry = manifest.shape, manifest.tokenizer
    text_files = (entry.file, entry.chat_template)
    # A tied embedding is the output head too, which every token reads. Without a spec it is taken
    # for one; 8 bits come with a float32 scale for each block of 32.
    tied = bool((manifest.spec or {}).get("tied", True))
    bits = 32 if manifest.quantization.head == "fp32" else 9
    return OnnxFootprint(
        context_length=shape.context_length,
        kv_bytes_per_token=0 if "encoder" in manifest.roles else shape.kv_bytes_per_token(),
        weights_bytes=sum(file.size for file in manifest.files if file.name not in text_files),
        embedding_bytes=0 if tied else shape.vocab_size * shape.hidden_size * bits // 8,
        heads=shape.heads,
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
    )
