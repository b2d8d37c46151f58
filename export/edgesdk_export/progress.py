"""Report how far an export is; the caller decides how to show it."""

from __future__ import annotations

from typing import Protocol


class ExportProgress(Protocol):
    """Called from the exporting thread, in order."""

    def stage(self, title: str, steps: int) -> None:
        """A new stage of `steps` steps begins; the one before it is over."""

    def advance(self, done: int) -> None:
        """`done` steps of the stage are over. The first call may say with how many it begins: none,
        or those that an earlier process finished."""

    def note(self, text: str) -> None:
        """Something that is worth seeing beside the steps, until there is another note: a loss."""


class SilentProgress:
    """Progress that nobody watches."""

    def stage(self, title: str, steps: int) -> None:
        """Nothing."""

    def advance(self, done: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
