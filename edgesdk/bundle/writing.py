"""Write a bundle beside its place and rename it there: it is whole, or it is not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgesdk.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from edgesdk.bundle.opening import hash_file, is_bundle
from edgesdk.errors import BundleError


@contextmanager
def staged_folder(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new folder beside `destination` that becomes it when the block ends without an error.

    On an error the folder is removed, and what stood at `destination` is untouched.

    Raises:
        BundleError: something stands at `destination` and may not be replaced.
    """
    if destination.exists() and not (replace and is_bundle(destination)):
        raise BundleError(
            f"{destination} exists already.",
            hint="Name another place, or pass --force to replace a bundle."
            if is_bundle(destination) or not destination.is_dir()
            else "It is not a bundle; name another place.",
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        yield stage
        stage.chmod(0o755)
        _swap_in(stage, destination)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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


def _swap_in(stage: Path, destination: Path) -> None:
    if destination.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old.", dir=stage.parent))
        destination.replace(retired / "bundle")
        stage.replace(destination)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        stage.replace(destination)


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
