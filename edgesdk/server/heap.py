"""Makes the server's process give memory back."""

from __future__ import annotations

import ctypes
import sys

# Of <malloc.h>.
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MMAP_BYTES = 2**18
_MAX_ARENAS = 2


def keep_memory_flat() -> bool:
    """Make the allocator give blocks of 256 KiB and more back to the system when they are freed,
    and have all threads share two heaps.

    glibc raises its own limit with every such block that is freed, up to 32 MB, and then keeps KV
    caches and logits of conversations that are over in its heaps, of which it gives nearly every
    thread one: memory creeps up for hours. This is a setting of the whole process, so it is for
    programs, not for libraries.

    Returns:
        Whether this system's allocator has these settings.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(
        mallopt(_M_ARENA_MAX, _MAX_ARENAS)
    )
