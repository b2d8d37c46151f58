"""How the store tells of its progress; who draws it is not the store's business."""

from __future__ import annotations

from typing import Protocol


class StoreProgress(Protocol):
    """What a long job calls while it works. One stage is under way at a time."""

    def start(self, stage: str, total: int | None, done: int = 0) -> None:
        """A stage begins: what it is, its bytes (None: unknown), those there from before."""

    def advance(self, count: int) -> None:
        """`count` more bytes of the stage are done."""

    def note(self, text: str) -> None:
        """Something that a person who waits would like to know."""


class SilentStoreProgress:
    """Progress that nobody watches."""

    def start(self, stage: str, total: int | None, done: int = 0) -> None:
        """Say nothing."""

    def advance(self, count: int) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


SILENT = SilentStoreProgress()
