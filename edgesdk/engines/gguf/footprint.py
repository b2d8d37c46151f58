"""What a GGUF model takes in memory on the CPU.

llama.cpp maps the file, packs some types of weights into a copy, and holds a context whose cells
double: one for each conversation that is computed at the same time, `MAX_CONTEXTS` at most. Counted
here is one. The constants are fitted to peaks measured with llama-cpp-python 0.3.36 on Linux x86-64
(SmolLM2-135M Q4_1 and Qwen2.5-Coder-1.5B Q4_K_M, 30 to 2,100 tokens). Each further context took its
cells and 7 MiB (SmolLM2, 4 of 1,024 cells: 294 MiB in all, and 206 with one).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgesdk.bundle.manifest import Role
from edgesdk.bundle.opening import Bundle
from edgesdk.engines.gguf.batching import BATCH_ROWS, BATCH_TOKENS
from edgesdk.engines.gguf.header_checks import HINT, read_header
from edgesdk.engines.gguf.library import load_library
from edgesdk.engines.gguf.native_model import FIRST_CELLS
from edgesdk.errors import EngineError, MissingExtra
from edgesdk.system.gguf_header import GgufArray, GgufHeader, GgufTensorEntry, quoted
from edgesdk.system.plan import MIB, PROCESS_BYTES, MemoryNeed

# llama.cpp's library and its Python bindings.
_RUNTIME_BYTES = 21 * MIB
_VOCABULARY_BYTES_PER_ENTRY = 370
# Q4_0, Q4_K and IQ4_NL: what ggml-cpu/repack.cpp interleaves on AVX2 (Arm: more types).
_PACKED_KINDS = frozenset({2, 12, 20})
_PACKED_ROWS = 8
_MAX_COUNT = 2**40
_GATHERED = "token_embd.weight"


@dataclass(frozen=True)
class GgufFootprint:
    """Implements `edgesdk.system.plan.Footprint`.

    Attributes:
        file_bytes: all of it gets mapped and read.
        packed_bytes: what of it is there a second time, packed.
        embedding_bytes: what of it is only gathered from, a row for each token.
    """

    context_length: int
    kv_bytes_per_token: int
    file_bytes: int
    packed_bytes: int
    embedding_bytes: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int

    @property
    def read_bytes_per_token(self) -> int:
        return self.file_bytes - self.embedding_bytes

    def need(self, context: int) -> MemoryNeed:
        cells = FIRST_CELLS
        while cells < context:
            cells *= 2
        # While a context of twice the cells takes over, the old one and a copy of what is in it
        # are there too.
        growth = cells if cells > FIRST_CELLS else 0
        activations = 4 * BATCH_TOKENS * (2 * self.intermediate_size + 8 * self.hidden_size)
        mask, rows = 2 * BATCH_TOKENS * cells, 4 * BATCH_ROWS * self.vocab_size
        return MemoryNeed(
            process=PROCESS_BYTES,
            runtime=_RUNTIME_BYTES + self.vocab_size * _VOCABULARY_BYTES_PER_ENTRY,
            weights=self.file_bytes + self.packed_bytes,
            kv_cache=cells * self.kv_bytes_per_token,
            scratch=growth * self.kv_bytes_per_token + activations + mask + rows,
        )


def footprint(source: Bundle | Path) -> GgufFootprint:
    """The footprint of a GGUF bundle, or of a bare `.gguf` file.

    Raises:
        EngineError: the file cannot be read, or is damaged.
    """
    path = source if isinstance(source, Path) else source.role_file(_role(source))
    header = read_header(path)
    hidden = _count(header, "embedding_length", 0)
    names = {tensor.name for tensor in header.tensors}
    gathered = [t.size for t in header.tensors if t.name == _GATHERED and "output.weight" in names]
    packs = _packs()
    packed = [
        tensor.size
        for tensor in header.tensors
        if packs
        and tensor.type in _PACKED_KINDS
        and _rows(tensor) % _PACKED_ROWS == 0
        and tensor.name != _GATHERED
    ]
    return GgufFootprint(
        context_length=_count(header, "context_length", FIRST_CELLS),
        kv_bytes_per_token=_kv_bytes_per_token(header, hidden),
        file_bytes=path.stat().st_size,
        packed_bytes=sum(packed),
        embedding_bytes=sum(gathered),
        hidden_size=hidden,
        intermediate_size=_count(header, "feed_forward_length", 0),
        vocab_size=_length(header, "tokenizer.ggml.tokens"),
    )


def _role(bundle: Bundle) -> Role:
    return "encoder" if "encoder" in bundle.manifest.roles else "decoder"


def _packs() -> bool:
    """Whether weights get packed on this machine; assumed where llama.cpp is not installed."""
    try:
        return load_library().extra_buffers
    except MissingExtra:
        return True


def _kv_bytes_per_token(header: GgufHeader, hidden: int) -> int:
    """float16 keys and values of all layers."""
    heads = _count(header, "attention.head_count", 1)
    kv_heads = _count(header, "attention.head_count_kv", heads)
    head_size = hidden // max(heads, 1)
    widths = (
        _count(header, "attention.key_length", head_size),
        _count(header, "attention.value_length", head_size),
    )
    return 2 * _count(header, "block_count", 0) * kv_heads * sum(widths)


def _count(header: GgufHeader, key: str, default: int) -> int:
    """The number under `ARCHITECTURE.key`; of an array with one per layer, the largest."""
    full = f"{header.metadata.get('general.architecture', '')}.{key}"
    value = header.metadata.get(full, default)
    if isinstance(value, GgufArray):
        value = default if value.is_texts or not value.length else value.numbers().max().item()
    if isinstance(value, str):
        return default
    if not 0 <= value <= _MAX_COUNT:
        raise EngineError(f"The GGUF header is damaged: {quoted(full)} is {value}.", hint=HINT)
    return int(value)


def _length(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(key)
    return value.length if isinstance(value, GgufArray) else 0


def _rows(tensor: GgufTensorEntry) -> int:
    """Its outer dimension; 1 for a vector."""
    return tensor.shape[-2] if len(tensor.shape) > 1 else 1
