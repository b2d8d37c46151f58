"""How many threads a model gets when the caller does not say."""

from __future__ import annotations

import os

import psutil

from edgesdk.errors import InvalidOption


def thread_count(asked: int | None) -> int:
    """`asked`, or one thread per physical core that this process may use.

    Hyperthreads share the vector units that decoding keeps busy, so they are not counted.

    Raises:
        InvalidOption: `asked` is less than 1.
    """
    if asked is not None:
        if asked < 1:
            raise InvalidOption(f"threads must be at least 1, not {asked}.")
        return asked
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(psutil.cpu_count(logical=False) or 1, usable or 1))
