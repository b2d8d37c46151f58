"""The KV cache of one decode state: buffers that the graph writes into, grown by need."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Buffer = npt.NDArray[np.float32]

# Tokens; the least that is made room for.
MIN_CAPACITY = 256
# Of <sys/mman.h>; Python's mmap has no use for it.
_MAP_FIXED = 0x10


@dataclass(frozen=True)
class CacheShape:
    """Dimensions of a KV cache, its length left out."""

    layers: int
    kv_heads: int
    head_size: int

    def elements(self, length: int) -> int:
        """Numbers in the cache of `length` tokens."""
        return 2 * self.layers * self.kv_heads * length * self.head_size


class StateCache(Protocol):
    """Where the keys and values of a decode state lie: in the host's memory, or in a device's."""

    @property
    def capacity(self) -> int:
        """Tokens that there is room for."""

    @property
    def buffers(self) -> tuple[tuple[Any, Any], ...]:
        """Keys and values of each layer, float32 [1, kv_heads, capacity, head_size]: arrays, or
        onnxruntime's values; another tuple whenever they are others."""

    def reserve(self, length: int, *, used: int, limit: int) -> None:
        """Make room for `length` tokens; the first `used` are kept.

        Capacities double, so that a token costs the same on average however long the text grows.
        On MemoryError the cache is as it was.
        """

    def copy(self, used: int) -> StateCache:
        """A cache of the same capacity with the first `used` tokens of this one."""

    def dump(self, used: int) -> Iterator[Buffer]:
        """The first `used` tokens: key, value of each layer, [kv_heads, used, head_size] each."""

    def load(self, numbers: Buffer, used: int) -> None:
        """The inverse of `dump`, into buffers that have room; `numbers` is flat."""


def grown_capacity(length: int, limit: int) -> int:
    """The capacity of a cache that has to hold `length` tokens, and at most `limit`."""
    capacity = MIN_CAPACITY
    while capacity < length:
        capacity *= 2
    return min(capacity, limit)


class KvCache:
    """Implements `StateCache` in the host's memory.

    Attributes:
        capacity: tokens that there is room for.
        buffers: float32 [1, kv_heads, capacity, head_size]; another tuple whenever they are
            others.
        views: float32 [aliases, kv_heads, capacity, head_size]; all aliases are the memory of
            `buffers`.
    """

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.capacity = 0
        self.aliases = 1
        self.buffers: tuple[tuple[Buffer, Buffer], ...] = ()
        self.views: tuple[tuple[Buffer, Buffer], ...] = ()

    def reserve(self, length: int, *, used: int, limit: int) -> None:
        self._replace(grown_capacity(length, limit), used)

    def alias(self, aliases: int, *, used: int) -> None:
        """Let `views` have so many aliases from now on; the first `used` tokens are kept.

        Raises:
            OSError: the system grants no such memory; the cache is as it was.
        """
        if aliases == self.aliases:
            return
        before = self.aliases
        self.aliases = aliases
        try:
            self._replace(self.capacity, used)
        except OSError:
            self.aliases = before
            raise

    def copy(self, used: int) -> KvCache:
        twin = KvCache(self.shape)
        twin.buffers = self.buffers
        twin._replace(self.capacity, used)
        return twin

    def dump(self, used: int) -> Iterator[Buffer]:
        for pair in self.buffers:
            for buffer in pair:
                yield buffer[0, :, :used]

    def load(self, numbers: Buffer, used: int) -> None:
        shape = self.shape
        parts = numbers.reshape(shape.layers, 2, shape.kv_heads, used, shape.head_size)
        for pair, layer in zip(self.buffers, parts, strict=True):
            for buffer, part in zip(pair, layer, strict=True):
                buffer[0, :, :used] = part

    def _replace(self, capacity: int, used: int) -> None:
        # Zeroed pages are not committed before they are written, so room costs no memory yet.
        if self.aliases == 1:
            dims = (1, self.shape.kv_heads, capacity, self.shape.head_size)
            views = tuple(
                (np.zeros(dims, np.float32), np.zeros(dims, np.float32))
                for _ in range(self.shape.layers)
            )
        else:
            views, capacity = self._aliased_views(capacity)
        buffers = tuple((keys[:1], values[:1]) for keys, values in views)
        for old_pair, new_pair in zip(self.buffers, buffers, strict=False):
            for old, new in zip(old_pair, new_pair, strict=True):
                new[:, :, :used] = old[:, :, :used]
        self.views, self.buffers = views, buffers
        self.capacity = capacity

    def _aliased_views(self, min_capacity: int) -> tuple[tuple[tuple[Buffer, Buffer], ...], int]:
        """Views with `aliases` aliases, and their capacity, which makes blocks of whole pages."""
        shape = self.shape
        token = shape.kv_heads * shape.head_size * np.dtype(np.float32).itemsize
        step = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, token)
        capacity = -(-min_capacity // step) * step
        whole = aliased_memory(2 * shape.layers, token * capacity, self.aliases).view(np.float32)
        blocks = whole.reshape(-1, self.aliases, shape.kv_heads, capacity, shape.head_size)
        return tuple(zip(blocks[::2], blocks[1::2], strict=True)), capacity


def aliased_memory(blocks: int, size: int, aliases: int) -> npt.NDArray[np.uint8]:
    """Return zeros, uint8 [blocks, aliases, size]: all aliases of a block are the same memory.

    What is written to one alias can be read from the others at once. The kernel counts pages that
    were touched through several aliases as resident several times.

    Args:
        size: of a block, bytes; a multiple of `mmap.PAGESIZE`.

    Raises:
        OSError: the system grants no such memory; only Linux does.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "Only Linux has such memory")
    # The pages are laid over a reservation, which gives them all back when the array is gone.
    reserved = mmap.mmap(-1, blocks * aliases * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(reserved, np.uint8).reshape(blocks, aliases, size)
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        *3 * [ctypes.c_int],
        ctypes.c_long,
    ]
    file = os.memfd_create("edgesdk-kv-cache")
    try:
        os.truncate(file, blocks * size)
        for block in range(blocks):
            for copy in range(aliases):
                place = whole[block, copy].ctypes.data
                got = library.mmap(
                    place,
                    size,
                    mmap.PROT_READ | mmap.PROT_WRITE,
                    mmap.MAP_SHARED | _MAP_FIXED,
                    file,
                    block * size,
                )
                if got != place:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
    finally:
        os.close(file)
    return whole
