"""The KV cache of one sequence: buffers that the graph writes into, grown by need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Buffer = npt.NDArray[np.float32]

# Tokens; the least that is made room for.
SMALLEST = 256


@dataclass(frozen=True)
class CacheShape:
    """Dimensions of a KV cache, its length left out."""

    layers: int
    kv_heads: int
    head_size: int

    def elements(self, length: int) -> int:
        """Numbers in the cache of `length` tokens."""
        return 2 * self.layers * self.kv_heads * length * self.head_size


class KvCache:
    """Key and value buffers, float32 [1, kv_heads, capacity, head_size], a pair for each layer."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.capacity = 0
        self.buffers: tuple[tuple[Buffer, Buffer], ...] = ()

    def reserve(self, length: int, *, used: int, limit: int) -> None:
        """Make room for `length` tokens; the first `used` are kept.

        Capacities double, so that a token costs the same on average however long the text grows.
        On MemoryError the cache is as it was.
        """
        capacity = SMALLEST
        while capacity < length:
            capacity *= 2
        self._replace(min(capacity, limit), used)

    def copy(self, used: int) -> KvCache:
        """A cache of the same capacity with the first `used` tokens of this one."""
        twin = KvCache(self.shape)
        twin.buffers = self.buffers
        twin._replace(self.capacity, used)
        return twin

    def dump(self, used: int) -> Iterator[Buffer]:
        """The first `used` tokens: key, value of each layer, [kv_heads, used, head_size] each."""
        for pair in self.buffers:
            for buffer in pair:
                yield buffer[0, :, :used]

    def load(self, numbers: Buffer, used: int) -> None:
        """The inverse of `dump`, into buffers that have room; `numbers` is flat."""
        shape = self.shape
        parts = numbers.reshape(shape.layers, 2, shape.kv_heads, used, shape.head_size)
        for pair, layer in zip(self.buffers, parts, strict=True):
            for buffer, part in zip(pair, layer, strict=True):
                buffer[0, :, :used] = part

    def _replace(self, capacity: int, used: int) -> None:
        dims = (1, self.shape.kv_heads, capacity, self.shape.head_size)
        # Zeroed pages are not committed before they are written, so room costs no memory yet.
        buffers = tuple(
            (np.zeros(dims, np.float32), np.zeros(dims, np.float32))
            for _ in range(self.shape.layers)
        )
        for old_pair, new_pair in zip(self.buffers, buffers, strict=False):
            for old, new in zip(old_pair, new_pair, strict=True):
                new[:, :, :used] = old[:, :, :used]
        self.buffers = buffers
        self.capacity = capacity
