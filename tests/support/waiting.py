"""Waiting for other threads, without a guess at how long they take."""

from __future__ import annotations

import threading
from collections.abc import Callable


def until(true: Callable[[], bool]) -> None:
    """Let the other threads run until what must happen has happened."""
    tick = threading.Event()
    for _ in range(60_000):
        if true():
            return
        tick.wait(0.0005)
    raise AssertionError("it did not happen")
