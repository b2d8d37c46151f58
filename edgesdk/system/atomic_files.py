"""Write files so that they are there whole or not at all, also after a kill or a power cut."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_path(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give the block a new file beside `path`, which then takes that place.

    Where the block raises, or the file cannot be put there, what stood at `path` stays, and the new
    file is removed.

    Args:
        private: nobody but this user may read the file.

    Raises:
        OSError: the place cannot be written.
    """
    beside = _create_beside(path, 0o600 if private else 0o666)
    try:
        yield beside
        flush_file(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """`atomic_path` as a binary stream to write to."""
    with atomic_path(path, private=private) as beside, beside.open("wb") as stream:
        yield stream


def write_atomically(path: Path, data: bytes | str, *, private: bool = False) -> None:
    """Write the whole file at once, a text as UTF-8; see `atomic_path`."""
    with atomic_file(path, private=private) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def flush_file(path: Path) -> None:
    """Have the system put the contents of a file on the disk now."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Have the system put the names in a folder on the disk now, where it can do that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems know no such thing.
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _create_beside(path: Path, mode: int) -> Path:
    while True:
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            return beside
