"""Turn panics of libraries that are written in Rust into our own errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgesdk.errors import EdgeError


@contextmanager
def panics_as(library: str, error: Callable[[str], EdgeError]) -> Iterator[None]:
    """Raise `error(reason)` where `library` panics.

    PyO3 raises a panic as a `BaseException`, which would end a thread or an event loop instead of
    the one request.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise error(f"{library} failed ({panic})") from None
