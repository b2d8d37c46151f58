"""Lay out the store's folder, and let one process at a time change a model.

ROOT/checkpoints/NAME/   files as they came, with a record of their hashes
ROOT/bundles/NAME/       bundles, each with its manifest
ROOT/downloads/NAME@KEY/ what a pull has fetched so far; a later pull goes on from there
ROOT/locks/NAME.lock     held by the process that changes NAME
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgesdk.errors import StoreBusy
from edgesdk.store.entries import Kind
from edgesdk.store.progress import StoreProgress
from edgesdk.store.reference import check_model_name


class StoreLayout:
    """Where everything is in the store at `root`. Making one reads and writes nothing.

    The methods that take a name raise InvalidOption where it cannot name a model.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def home(self, kind: Kind) -> Path:
        """The folder of all models of a kind."""
        return self.root / f"{kind}s"

    def folder(self, name: str, kind: Kind) -> Path:
        """The folder of a model, whether it is there or not."""
        return self.home(kind) / check_model_name(name)

    def folders(self, kind: Kind) -> list[Path]:
        """The folders of all models of a kind that are there."""
        home = self.home(kind)
        if not home.is_dir():
            return []
        return [path for path in home.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def downloads(self) -> Path:
        """The folder of unfinished pulls; it exists."""
        folder = self.root / "downloads"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def unfinished(self, name: str) -> tuple[Path, ...]:
        """The folders of unfinished pulls of that name."""
        return tuple(sorted((self.root / "downloads").glob(f"{check_model_name(name)}@*")))

    def discard(self, folder: Path) -> None:
        """Remove a model's folder: it goes at once, not file by file."""
        trash = Path(tempfile.mkdtemp(prefix=".trash-", dir=self.downloads()))
        folder.replace(trash / folder.name)
        shutil.rmtree(trash)

    def lock_path(self, name: str) -> Path:
        """The file that the process which changes `name` holds locked."""
        return self.root / "locks" / f"{check_model_name(name)}.lock"

    @contextmanager
    def locked(self, name: str, *, wait: float, progress: StoreProgress) -> Iterator[None]:
        """Hold the lock of a model while the block runs; the system frees it when a process dies.

        Args:
            wait: seconds to wait for another process.

        Raises:
            StoreBusy: another process still held it after that time.
        """
        from filelock import FileLock, Timeout

        path = self.lock_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.note(f"another process is working on {name}; waiting for it")
            try:
                lock.acquire(timeout=wait)
            except Timeout:
                raise StoreBusy(
                    f"Another process still works on {name} after {wait:g} s.",
                    hint="Wait for it, or end it; what it had fetched is kept.",
                ) from None
        try:
            yield
        finally:
            lock.release()
