"""Lets one thread at a time use a provider's device, and frees what others leave behind.

The libraries of GPUs are not made for several threads: one that copies or frees a buffer while
another computes breaks the other's commands (WebGPU: "CommandEncoder is already finished").
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from typing import Any

HOST: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


class DeviceAccess:
    """The right to use a device; a context manager that may be entered again while it is held."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._discarded: deque[object] = deque()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._discarded.clear()
        self._lock.release()

    def discard(self, *resources: object) -> None:
        """Free buffers and bindings of the device: now, or as soon as nobody uses it.

        Waits for nothing, because a garbage collector may be who calls.
        """
        self._discarded.extend(resources)
        del resources
        if self._lock.acquire(blocking=False):
            self.__exit__()


@functools.cache
def access_to(provider: str) -> DeviceAccess:
    """The access that all sessions on a provider share, whatever model they run."""
    return DeviceAccess()
