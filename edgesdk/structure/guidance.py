"""llguidance, loaded when the first structure is asked for."""

from __future__ import annotations

from types import ModuleType

from edgesdk.errors import MissingExtra


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
