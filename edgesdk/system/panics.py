"""Panics of libraries that are written in Rust."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgesdk.errors import EdgeError


@contextmanager
def panics_as(library: str, error: Callable[[str], EdgeError]) -> Iterator[None]:
    """Raise `error(reason)` where `library` panics.

    PyO3 makes of a Rust panic an exception that is no `Exception`, so that it would end threads
    and event loops instead of the one request.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise error(f"{library} failed ({panic})") from None
