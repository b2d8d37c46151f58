"""Write files so that they are there whole or not at all, also after a kill or a power cut."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What a dead process left is removed after this time where a lock cannot tell that it is dead.
_LEFTOVER_SECONDS = 86_400.0
_TOKEN_BYTES = 4


@contextlib.contextmanager
def atomic_path(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give the block a new file beside `path`, which then takes that place.

    Where the block raises, or the file cannot be put there, what stood at `path` stays, and the new
    file is removed. Where the process is killed, the next write to `path` removes it. A symbolic
    link at `path` is replaced, not followed.

    Args:
        private: nobody but this user may read the file.

    Raises:
        OSError: the place cannot be written, or what stands there is no file: a folder, a device,
            a pipe, or a link to one.
    """
    _check_place(path)
    _remove_leftovers(path)
    beside, handle = _create_beside(path, _mode(private))
    try:
        if fcntl is None:
            # Windows renames no open file.
            os.close(handle)
        try:
            yield beside
            flush_file(beside)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    finally:
        if fcntl is not None:
            os.close(handle)
    flush_folder(path.parent)


@contextlib.contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """`atomic_path` as a binary stream to write to.

    Where the system can (Linux), the file has no name before it is whole, so that a process that
    is killed leaves nothing.
    """
    _check_place(path)
    handle = _open_unnamed(path, _mode(private))
    if handle is None:
        with atomic_path(path, private=private) as beside, beside.open("wb") as stream:
            yield stream
        return
    with os.fdopen(handle, "wb") as stream:
        _remove_leftovers(path)
        yield stream
        stream.flush()
        os.fsync(handle)
        beside = _link_beside(handle, path)
        try:
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    flush_folder(path.parent)


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


def _mode(private: bool) -> int:
    return 0o600 if private else 0o666


def _check_place(path: Path) -> None:
    """Raise OSError where something stands at `path` that a file must not replace."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN_BYTES)}")


def _create_beside(path: Path, mode: int) -> tuple[Path, int]:
    """Create a file beside `path`, locked for as long as its handle is open."""
    while True:
        beside = _name_beside(path)
        with contextlib.suppress(FileExistsError):
            handle = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
            if _belongs_to_us(handle, beside):
                return beside, handle
            os.close(handle)


def _open_unnamed(path: Path, mode: int) -> int | None:
    """Open a file without a name in the folder of `path`; None where the system has no such."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None:
        return None
    try:
        handle = os.open(path.parent, flag | os.O_RDWR, mode)
    except OSError as error:
        # Of the kernel, and of the file system.
        if error.errno in (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise
    if Path(f"/proc/self/fd/{handle}").exists():
        return handle
    os.close(handle)
    return None


def _link_beside(handle: int, path: Path) -> Path:
    """Give a file without a name one beside `path` (open(2), O_TMPFILE)."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            _lock(handle)
        while True:
            beside = _name_beside(path)
            with contextlib.suppress(FileExistsError):
                # With a folder, Python calls linkat, which follows the link in /proc.
                os.link(
                    f"/proc/self/fd/{handle}",
                    beside.name,
                    src_dir_fd=folder,
                    dst_dir_fd=folder,
                    follow_symlinks=True,
                )
                return beside
    finally:
        os.close(folder)


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that died while they wrote to `path` left beside it."""
    pattern = f".{glob.escape(path.name)}.{'[0-9a-f]' * (2 * _TOKEN_BYTES)}"
    for leftover in path.parent.glob(pattern):
        # It may be somebody else's, or gone meanwhile, or on a file system without locks.
        with contextlib.suppress(OSError):
            _remove_if_abandoned(leftover)


def _remove_if_abandoned(leftover: Path) -> None:
    there = leftover.lstat()
    if not stat.S_ISREG(there.st_mode):
        return
    if fcntl is None:
        if time.time() - there.st_mtime > _LEFTOVER_SECONDS:
            leftover.unlink()
        return
    handle = os.open(leftover, os.O_RDWR | os.O_NOFOLLOW)
    try:
        # Removed under the lock: a writer that comes for the lock then sees that its file is gone.
        if _lock(handle):
            leftover.unlink()
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock a file until its handle is closed or its process ends; False where another has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _belongs_to_us(handle: int, path: Path) -> bool:
    """Lock a new file; False where another process took it for a leftover before that."""
    with contextlib.suppress(OSError):
        if not _lock(handle):
            return False
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
