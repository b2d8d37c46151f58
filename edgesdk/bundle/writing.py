"""Write a bundle beside its place and rename it there: it is whole, or it is not there."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgesdk.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from edgesdk.bundle.opening import hash_file, is_bundle
from edgesdk.errors import BundleError

# Beside the bundle that is being made: the lock that says that someone is at it, and what stood at
# its place before.
_LOCK, _NEW, _OLD = "lock", "bundle", "replaced"


@contextmanager
def staged_folder(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder that becomes `destination` when the block ends without an error. It lies in a
    hidden folder beside it, where the block may leave other things, too.

    On an error all is removed, and what stood at `destination` is untouched. What a killed process
    left is removed by the next one that writes there.

    Raises:
        BundleError: something stands at `destination` and may not be replaced.
    """
    from filelock import FileLock

    _clear_abandoned(destination)
    if destination.exists() and not (replace and is_bundle(destination)):
        raise BundleError(
            f"{destination} exists already.",
            hint="Name another place, or pass --force to replace a bundle."
            if is_bundle(destination) or not destination.is_dir()
            else "It is not a bundle; name another place.",
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    lock = FileLock(hidden / _LOCK)
    try:
        lock.acquire()
        stage = hidden / _NEW
        stage.mkdir()
        yield stage
        stage.chmod(0o755)
        if destination.exists():
            destination.replace(hidden / _OLD)
        stage.replace(destination)
    finally:
        lock.release()
        shutil.rmtree(hidden, ignore_errors=True)


def _clear_abandoned(destination: Path) -> None:
    """Remove what killed processes left; a bundle that one was about to replace comes back."""
    from filelock import FileLock, Timeout

    start = f".{destination.name}."
    for hidden in destination.parent.glob(f"{glob.escape(start)}*"):
        if "." in hidden.name[len(start) :] or not (hidden / _LOCK).is_file():
            continue
        lock = FileLock(hidden / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        if (hidden / _OLD).exists() and not destination.exists():
            (hidden / _OLD).replace(destination)
        lock.release()
        shutil.rmtree(hidden, ignore_errors=True)


def seal(folder: Path, manifest_without_files: Manifest) -> Manifest:
    """List and hash every file in `folder`, write the manifest, flush all of it to the disk."""
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST_NAME):
        _flush(path)
        entries.append(
            FileEntry(
                name=path.relative_to(folder).as_posix(),
                size=path.stat().st_size,
                sha256=hash_file(path),
            )
        )
    fields = manifest_without_files.model_dump()
    manifest = Manifest.model_validate({**fields, "files": entries})
    target = folder / MANIFEST_NAME
    target.write_text(manifest.to_json(), encoding="utf-8")
    _flush(target)
    return manifest


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
