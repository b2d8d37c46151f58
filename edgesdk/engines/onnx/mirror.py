"""Memory that shows up several times in a row in the address space."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys

import numpy as np
import numpy.typing as npt

# Of <sys/mman.h>; Python's mmap has no use for it.
_MAP_FIXED = 0x10


def mirrored(blocks: int, size: int, copies: int) -> npt.NDArray[np.uint8]:
    """Zeros, uint8 [blocks, copies, size]: all copies of a block are the same memory.

    What is written to one copy can be read from the others at once. The kernel counts pages that
    were touched through several copies as resident several times.

    Args:
        size: of a block, bytes; a multiple of `mmap.PAGESIZE`.

    Raises:
        OSError: the system grants no such memory; only Linux does.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "Only Linux has such memory")
    # The pages are laid over a reservation, which gives them all back when the array is gone.
    reserved = mmap.mmap(-1, blocks * copies * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(reserved, np.uint8).reshape(blocks, copies, size)
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
            for copy in range(copies):
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
