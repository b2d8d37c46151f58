"""llguidance, loaded when the first structure is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

from edgesdk.errors import EdgeError, MissingExtra


def guidance() -> ModuleType:
    """The package `llguidance`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import llguidance
    except ImportError:
        raise MissingExtra(
            "llguidance", extra="structure", needed_for="An answer of a given form"
        ) from None
    return llguidance


@contextmanager
def panics_as(error: Callable[[str], EdgeError]) -> Iterator[None]:
    """Raise `error(reason)` where llguidance panics.

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
        raise error(f"llguidance failed ({panic})") from None
