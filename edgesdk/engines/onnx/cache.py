"""The KV cache of one sequence: buffers that the graph writes into, grown by need."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesdk.engines.onnx.mirror import mirrored

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
    """Key and value buffers, a pair for each layer.

    Attributes:
        capacity: tokens that there is room for.
        buffers: float32 [1, kv_heads, capacity, head_size]; another tuple whenever they are
            others.
        stacks: float32 [copies, kv_heads, capacity, head_size]; all copies are the memory of
            `buffers`.
    """

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.capacity = 0
        self.copies = 1
        self.buffers: tuple[tuple[Buffer, Buffer], ...] = ()
        self.stacks: tuple[tuple[Buffer, Buffer], ...] = ()

    def reserve(self, length: int, *, used: int, limit: int) -> None:
        """Make room for `length` tokens; the first `used` are kept.

        Capacities double, so that a token costs the same on average however long the text grows.
        On MemoryError the cache is as it was.
        """
        capacity = SMALLEST
        while capacity < length:
            capacity *= 2
        self._replace(min(capacity, limit), used)

    def spread(self, copies: int, *, used: int) -> None:
        """Let `stacks` have so many copies from now on; the first `used` tokens are kept.

        Raises:
            OSError: the system grants no such memory; the cache is as it was.
        """
        if copies == self.copies:
            return
        before = self.copies
        self.copies = copies
        try:
            self._replace(self.capacity, used)
        except OSError:
            self.copies = before
            raise

    def copy(self, used: int) -> KvCache:
        """A cache of the same capacity with the first `used` tokens of this one, in one copy."""
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
        # Zeroed pages are not committed before they are written, so room costs no memory yet.
        if self.copies == 1:
            dims = (1, self.shape.kv_heads, capacity, self.shape.head_size)
            stacks = tuple(
                (np.zeros(dims, np.float32), np.zeros(dims, np.float32))
                for _ in range(self.shape.layers)
            )
        else:
            stacks, capacity = self._spread_out(capacity)
        buffers = tuple((keys[:1], values[:1]) for keys, values in stacks)
        for old_pair, new_pair in zip(self.buffers, buffers, strict=False):
            for old, new in zip(old_pair, new_pair, strict=True):
                new[:, :, :used] = old[:, :, :used]
        self.stacks, self.buffers = stacks, buffers
        self.capacity = capacity

    def _spread_out(self, least: int) -> tuple[tuple[tuple[Buffer, Buffer], ...], int]:
        """Stacks of `copies` copies, and their capacity, which makes blocks of whole pages."""
        shape = self.shape
        token = shape.kv_heads * shape.head_size * np.dtype(np.float32).itemsize
        step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, token)
        capacity = -(-least // step) * step
        whole = mirrored(2 * shape.layers, token * capacity, self.copies).view(np.float32)
        blocks = whole.reshape(-1, self.copies, shape.kv_heads, capacity, shape.head_size)
        return tuple(zip(blocks[::2], blocks[1::2], strict=True)), capacity
