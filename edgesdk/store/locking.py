"""One process at a time changes a model; the others wait, and say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgesdk.errors import StoreBusy
from edgesdk.store.progress import StoreProgress


@contextmanager
def locked(path: Path, *, what: str, wait: float, progress: StoreProgress) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; the system frees it when a process dies.

    Args:
        what: the model, for messages.
        wait: the most seconds to wait for another process.

    Raises:
        StoreBusy: another process still held it after that time.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.note(f"another process is working on {what}; waiting for it")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise StoreBusy(
                f"Another process still works on {what} after {wait:g} s.",
                hint="Wait for it, or end it; what it had fetched is kept.",
            ) from None
    try:
        yield
    finally:
        lock.release()
