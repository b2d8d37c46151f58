"""Bring a file or folder of this machine into the store: linked where possible, else copied."""

from __future__ import annotations

import os
from pathlib import Path

from edgesdk.errors import UnknownModel
from edgesdk.store.choosing import choose_files
from edgesdk.store.disk import frees_on_full, require_space
from edgesdk.store.names import safe_file_name
from edgesdk.store.progress import Progress

_CHUNK = 4 * 2**20


def bring_in(source: Path, folder: Path, progress: Progress) -> list[str]:
    """Put the file `source`, or the files of a checkpoint in it, into `folder`; their names.

    Raises:
        UnknownModel: there is nothing at `source`.
        DownloadFailed: the folder holds no checkpoint.
        NotEnoughSpace: the disk cannot hold a copy.
    """
    if source.is_file():
        chosen = {safe_file_name(source.name): source}
    elif source.is_dir():
        present = {
            path.relative_to(source).as_posix(): path
            for path in source.rglob("*")
            if path.is_file() and not path.relative_to(source).as_posix().startswith(".")
        }
        names = choose_files(present, (), where=str(source))
        chosen = {safe_file_name(name): present[name] for name in names}
    else:
        raise UnknownModel(f"There is no file or folder {source}.", hint="Check the path.")
    for name, path in chosen.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        _link_or_copy(path.resolve(), target, progress)
    return sorted(chosen)


def _link_or_copy(source: Path, target: Path, progress: Progress) -> None:
    try:
        os.link(source, target)
        return
    except OSError:
        # Another disk, or a file system without hard links.
        size = source.stat().st_size
    require_space(target.parent, size)
    progress.start(f"copying {source.name}", size)
    with frees_on_full(target), source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK):
            writer.write(chunk)
            progress.advance(len(chunk))
        writer.flush()
        os.fsync(writer.fileno())
