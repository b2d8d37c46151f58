"""Report the progress of the store's long jobs; the caller draws it, or nobody does."""

from __future__ import annotations

from typing import Protocol


class StoreProgress(Protocol):
    """Receives the progress of a long job, one stage at a time."""

    def start(self, stage: str, total: int | None, done: int = 0) -> None:
        """Begin a stage: its title, its bytes (None: unknown), and those done before."""

    def advance(self, count: int) -> None:
        """Count `count` more bytes of the stage as done."""

    def note(self, text: str) -> None:
        """Tell a person who waits something."""


class SilentStoreProgress:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int | None, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, count: int) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


SILENT = SilentStoreProgress()
