"""Pull a model: plan it, fetch it into a staging folder, check it, and move it to its place."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from edgesdk.bundle.manifest import FileEntry
from edgesdk.bundle.opening import hash_file, is_bundle, open_bundle, verify_bundle
from edgesdk.errors import StoreError, UnknownModel
from edgesdk.store.catalog import find_in_catalog
from edgesdk.store.disk import (
    removes_on_full_disk,
    require_space,
    size_of,
    sync_folder,
    write_whole,
)
from edgesdk.store.download_plan import (
    DownloadPlan,
    choose_checkpoint_files,
    plan_from_hub,
    plan_single_file,
)
from edgesdk.store.entries import RECORD_NAME, CheckpointRecord, Kind, StoreEntry, read_record
from edgesdk.store.file_builder import FileBuilder
from edgesdk.store.locking import locked
from edgesdk.store.progress import StoreProgress
from edgesdk.store.reference import (
    CatalogReference,
    HubReference,
    PathReference,
    Reference,
    UrlReference,
    WheelReference,
    check_model_name,
    parse_reference,
    safe_file_name,
)
from edgesdk.store.store import Store


def pull(
    store: Store, text: str, *, name: str | None, progress: StoreProgress, wait: float
) -> StoreEntry:
    """See `Store.pull`."""
    reference = parse_reference(text)
    if isinstance(reference, CatalogReference):
        find_in_catalog(reference.name)
    name = check_model_name(name or reference.default_name)
    here = _already(store, name, reference)
    if here is not None:
        return here
    with locked(store.lock_path(name), what=name, wait=wait, progress=progress):
        here = _already(store, name, reference)
        return here or _fetch(store, name, reference, progress)


def _already(store: Store, name: str, reference: Reference) -> StoreEntry | None:
    """The model, if it is here whole; None also if it is here damaged, to be replaced."""
    entry = store.find(name, "checkpoint")
    if entry is None or entry.problem is not None:
        return None
    asked = read_record(store.place(name, "checkpoint")).reference
    if asked != str(reference):
        raise StoreError(
            f"The store has a checkpoint {name!r} already, from {asked}.",
            hint=f"Pick another name with --name, or first run: edgesdk remove {name}",
        )
    return entry


def _fetch(store: Store, name: str, reference: Reference, progress: StoreProgress) -> StoreEntry:
    if isinstance(reference, PathReference):
        return _fetch_local(store, name, reference, progress)
    plan = _plan(reference)
    stage = _stage(store, name, plan.source, str(reference))
    files, scratch = stage / "files", stage / "parts"
    files.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    there = sum(size_of(path) for path in stage.rglob("*") if path.is_file())
    require_space(stage, sum(file.size or 0 for file in plan.files) - there)
    assembler = FileBuilder(files, scratch, progress)
    try:
        hashes = {file.name: assembler.make(file) for file in plan.files}
    finally:
        assembler.close()
    promised = tuple(file.name for file in plan.files if file.sha256 is not None)
    return _land(store, name, stage, str(reference), plan, hashes, promised)


def _fetch_local(
    store: Store, name: str, reference: PathReference, progress: StoreProgress
) -> StoreEntry:
    stage = _stage(store, name, str(reference), str(reference))
    files = stage / "files"
    try:
        files.mkdir(parents=True, exist_ok=True)
        hashes = {}
        for file in import_local_files(reference.path, files, progress):
            progress.start(f"checking {file}", (files / file).stat().st_size)
            hashes[file] = hash_file(files / file, progress=progress.advance)
        plan = DownloadPlan(source=str(reference), files=())
        return _land(store, name, stage, str(reference), plan, hashes, ())
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _plan(
    reference: CatalogReference | WheelReference | HubReference | UrlReference,
) -> DownloadPlan:
    if isinstance(reference, CatalogReference):
        return find_in_catalog(reference.name).plan
    if isinstance(reference, HubReference):
        return plan_from_hub(reference)
    return plan_single_file(reference)


def _stage(store: Store, name: str, source: str, reference: str) -> Path:
    """Where this very model is put together; another source of the same name has another."""
    key = hashlib.sha256(f"{source}\n{reference}".encode()).hexdigest()[:12]
    return store.downloads() / f"{name}@{key}"


def _land(
    store: Store,
    name: str,
    stage: Path,
    reference: str,
    plan: DownloadPlan,
    hashes: dict[str, str],
    promised: tuple[str, ...],
) -> StoreEntry:
    """Write the record, rename the files to their place, drop what was unfinished."""
    files = stage / "files"
    kind: Kind = "bundle" if is_bundle(files) else "checkpoint"
    if kind == "bundle":
        verify_bundle(open_bundle(files))
    else:
        record = CheckpointRecord(
            name=name,
            reference=reference,
            source=plan.source,
            licence=plan.licence,
            files=tuple(
                FileEntry(name=file, size=(files / file).stat().st_size, sha256=sha256)
                for file, sha256 in sorted(hashes.items())
            ),
            promised=promised,
        )
        write_whole(files / RECORD_NAME, record.to_json())
    place = store.place(name, kind)
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "bundle" and place.exists():
        raise StoreError(
            f"The store has a bundle {name!r} already.",
            hint=f"Pick another name with --name, or first run: edgesdk remove {name}",
        )
    if place.exists():
        store.retire(place)
    files.replace(place)
    sync_folder(place.parent)
    for leftover in store.unfinished(name):
        shutil.rmtree(leftover, ignore_errors=True)
    return store.get(name, kind)


_CHUNK = 4 * 2**20


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
        _link_or_copy(path.resolve(), target, progress)
    return sorted(chosen)


def _link_or_copy(source: Path, target: Path, progress: StoreProgress) -> None:
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
