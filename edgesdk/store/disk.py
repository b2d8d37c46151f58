"""Work with files: report progress, check the room on the disk, fail clearly when it is full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from edgesdk.errors import NotEnoughSpace


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


# What is left free at least: a disk filled to the last byte breaks more than a download.
RESERVE_BYTES = 32 * 2**20
_CHUNK = 4 * 2**20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MAKE_ROOM = "Free some space, or set EDGESDK_HOME to a folder on another disk."


def require_space(folder: Path, needed: int) -> None:
    """Check that `needed` bytes more fit on the disk that holds `folder`."""
    free = shutil.disk_usage(folder).free
    if needed > 0 and free < needed + RESERVE_BYTES:
        raise NotEnoughSpace(
            f"{folder} has {free / 1e6:,.0f} MB free; {needed / 1e6:,.0f} MB more are needed"
            f" (and {RESERVE_BYTES / 1e6:.0f} MB to spare).",
            hint=_MAKE_ROOM,
        )


@contextmanager
def removes_on_full_disk(*partial: Path) -> Iterator[None]:
    """Remove the `partial` files that the block writes, if the disk fills up meanwhile.

    Raises:
        NotEnoughSpace: the disk (or the user's quota) is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        for path in partial:
            path.unlink(missing_ok=True)
        raise NotEnoughSpace(
            f"The disk filled up while {partial[0].name} was written; what there was of it is"
            " removed.",
            hint=_MAKE_ROOM,
        ) from error


def link_or_copy(source: Path, target: Path, progress: StoreProgress) -> None:
    """Put the file `source` at `target` too, by a hard link where the file system can.

    Raises:
        NotEnoughSpace: the disk cannot hold a copy.
    """
    try:
        os.link(source, target)
        return
    except OSError:
        # Another disk, or a file system without hard links.
        size = source.stat().st_size
    require_space(target.parent, size)
    progress.start(f"copying {source.name}", size)
    with removes_on_full_disk(target), source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            progress.advance(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def folder_size(folder: Path) -> int:
    """Bytes of all files under `folder`."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
