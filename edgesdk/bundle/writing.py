"""Write a bundle beside its place and rename it there, so that it is whole or not there."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgesdk.bundle.adapter import ADAPTER_MANIFEST, AdapterManifest
from edgesdk.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from edgesdk.bundle.opening import hash_file, is_bundle
from edgesdk.errors import BundleError
from edgesdk.system.atomic_files import flush_file, flush_folder

if TYPE_CHECKING:
    from filelock import FileLock

_MANIFESTS = (MANIFEST_NAME, ADAPTER_MANIFEST)
# Beside the bundle that is being made: the lock of the process that makes it, what it is made from,
# what stood at its place before, and what its maker needs to go on after a kill.
_LOCK, _INPUTS, _NEW, _OLD, _RESUME = "lock", "inputs", "bundle", "replaced", "resume"


@contextmanager
def staged_folder(
    destination: Path,
    *,
    replace: bool = False,
    inputs: str | None = None,
    replaceable: Callable[[Path], bool] = is_bundle,
) -> Iterator[Path]:
    """Give a folder that becomes `destination` when the block ends without an error.

    It lies in a hidden folder beside it, where the block may leave other files (`resume_folder`).

    Where `inputs` is given and a process that was killed or stopped was making the bundle from
    the same ones, the folder is that process's, with all that it held; else it is new and empty.
    What others left is removed. Processes that make the same bundle at once have folders of their
    own; the first to end takes the place.

    On an error all is removed; on Ctrl-C it is removed only where there are no `inputs` by which
    it would be found again. What stood at `destination` is untouched.

    Args:
        inputs: one line that is the same if, and only if, the same files would be written.
        replaceable: whether a folder is of the kind that `replace` allows to replace.

    Raises:
        BundleError: something stands at `destination` and may not be replaced.
    """
    hidden, lock = _reclaim(destination, inputs)
    try:
        _refuse_occupied(destination, replaceable, replace=replace)
        if hidden is None:
            hidden, lock = _create(destination, inputs)
        try:
            stage = hidden / _NEW
            yield stage
            flush_folder(stage)
            stage.chmod(0o755)
            _take_place(stage, destination, hidden / _OLD, replaceable, replace=replace)
        except BaseException as error:
            _put_back(hidden / _OLD, destination)
            if isinstance(error, Exception) or inputs is None:
                _discard(hidden, lock)
            raise
        _discard(hidden, lock)
    finally:
        if lock is not None:
            lock.release()


def resume_folder(stage: Path) -> Path:
    """Make a folder beside the one that `staged_folder` gives.

    It never becomes part of the bundle. A process that goes on finds it as it was left.
    """
    folder = stage.parent / _RESUME
    folder.mkdir(exist_ok=True)
    return folder


def _refuse_occupied(
    destination: Path, replaceable: Callable[[Path], bool], *, replace: bool
) -> None:
    if destination.exists() and not (replace and replaceable(destination)):
        raise BundleError(
            f"{destination} exists already.",
            hint="Name another place, or pass --force to replace a bundle."
            if replaceable(destination) or not destination.is_dir()
            else "It is not a bundle; name another place.",
        )


def _take_place(
    stage: Path,
    destination: Path,
    old: Path,
    replaceable: Callable[[Path], bool],
    *,
    replace: bool,
) -> None:
    """Rename; who made the same bundle meanwhile and was faster is replaced only if allowed to."""
    while True:
        if destination.exists():
            _refuse_occupied(destination, replaceable, replace=replace)
            _remove(old)
            with suppress(FileNotFoundError):
                destination.replace(old)
        try:
            stage.replace(destination)
        except OSError:
            # A rename replaces no folder that has something in it.
            if not destination.exists():
                raise
        else:
            return


def _put_back(old: Path, destination: Path) -> None:
    if old.exists() and not destination.exists():
        old.replace(destination)


def _reclaim(destination: Path, inputs: str | None) -> tuple[Path | None, FileLock | None]:
    """The hidden folder of an ended process that made the same, locked; the other ones go, and a
    bundle that one was about to replace comes back."""
    from filelock import Timeout

    taken: tuple[Path | None, FileLock | None] = (None, None)
    start = f".{destination.name}."
    for hidden in sorted(destination.parent.glob(f"{glob.escape(start)}*")):
        if "." in hidden.name[len(start) :] or not (hidden / _LOCK).is_file():
            continue
        lock = _lock(hidden)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _put_back(hidden / _OLD, destination)
        if taken[0] is None and inputs is not None and _recorded_inputs(hidden) == inputs:
            for path in hidden.iterdir():
                if path.name not in (_LOCK, _INPUTS, _NEW, _RESUME):
                    _remove(path)
            taken = (hidden, lock)
        else:
            _discard(hidden, lock)
    return taken


def _create(destination: Path, inputs: str | None) -> tuple[Path, FileLock]:
    """A hidden folder of one's own, locked."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    lock = _lock(hidden)
    lock.acquire()
    (hidden / _NEW).mkdir()
    # Last: a folder without it is never taken over.
    if inputs is not None:
        (hidden / _INPUTS).write_text(inputs, encoding="utf-8")
    return hidden, lock


def _discard(hidden: Path, lock: FileLock | None) -> None:
    """Remove a hidden folder. Some systems remove no open file, so the lock is released before;
    nobody takes the folder over then."""
    (hidden / _INPUTS).unlink(missing_ok=True)
    if lock is not None:
        lock.release()
    _remove(hidden)


def _recorded_inputs(hidden: Path) -> str | None:
    path = hidden / _INPUTS
    whole = path.is_file() and (hidden / _NEW).is_dir()
    return path.read_text(encoding="utf-8", errors="replace") if whole else None


def _lock(hidden: Path) -> FileLock:
    from filelock import FileLock

    return FileLock(hidden / _LOCK)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest_without_files: Manifest) -> Manifest:
    """List and hash every file in `folder`, write the manifest, flush all of it to the disk."""
    fields = manifest_without_files.model_dump()
    manifest = Manifest.model_validate({**fields, "files": listed_files(folder)})
    _write_flushed(folder / MANIFEST_NAME, manifest.to_json())
    return manifest


def write_adapter_manifest(
    folder: Path, manifest_without_files: AdapterManifest
) -> AdapterManifest:
    """`write_manifest` for an adapter."""
    fields = manifest_without_files.model_dump()
    manifest = AdapterManifest.model_validate({**fields, "files": listed_files(folder)})
    _write_flushed(folder / ADAPTER_MANIFEST, manifest.to_json())
    return manifest


def listed_files(folder: Path) -> list[FileEntry]:
    """Every file in `folder` but its manifest, hashed, and flushed to the disk."""
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in _MANIFESTS):
        flush_file(path)
        entries.append(
            FileEntry(
                name=path.relative_to(folder).as_posix(),
                size=path.stat().st_size,
                sha256=hash_file(path),
            )
        )
    return entries


def _write_flushed(target: Path, text: str) -> None:
    target.write_text(text, encoding="utf-8")
    flush_file(target)
