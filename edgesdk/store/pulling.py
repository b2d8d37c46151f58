"""Pull a model: plan it, fetch it beside its place, check it, rename it there."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from edgesdk.bundle.manifest import FileEntry
from edgesdk.bundle.opening import hash_file, is_bundle, open_bundle, verify_bundle
from edgesdk.errors import StoreError
from edgesdk.store.assemble import Assembler
from edgesdk.store.catalog import look_up
from edgesdk.store.disk import require_space, size_of, sync_folder, write_whole
from edgesdk.store.hub import plan_from_hub
from edgesdk.store.local import bring_in
from edgesdk.store.locking import locked
from edgesdk.store.names import check_name
from edgesdk.store.plan import Plan, plan_one
from edgesdk.store.progress import Progress
from edgesdk.store.record import RECORD_NAME, CheckpointRecord, Entry, Kind, read_record
from edgesdk.store.reference import (
    CatalogReference,
    HubReference,
    PathReference,
    Reference,
    UrlReference,
    WheelReference,
    parse_reference,
)
from edgesdk.store.store import Store


def pull(store: Store, text: str, *, name: str | None, progress: Progress, wait: float) -> Entry:
    """See `Store.pull`."""
    reference = parse_reference(text)
    if isinstance(reference, CatalogReference):
        look_up(reference.name)
    name = check_name(name or reference.default_name)
    here = _already(store, name, reference)
    if here is not None:
        return here
    with locked(store.lock_path(name), what=name, wait=wait, progress=progress):
        here = _already(store, name, reference)
        return here or _fetch(store, name, reference, progress)


def _already(store: Store, name: str, reference: Reference) -> Entry | None:
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


def _fetch(store: Store, name: str, reference: Reference, progress: Progress) -> Entry:
    if isinstance(reference, PathReference):
        return _fetch_local(store, name, reference, progress)
    plan = _plan(reference)
    stage = _stage(store, name, plan.source, str(reference))
    files, scratch = stage / "files", stage / "parts"
    files.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    there = sum(size_of(path) for path in stage.rglob("*") if path.is_file())
    require_space(stage, sum(file.size or 0 for file in plan.files) - there)
    assembler = Assembler(files, scratch, progress)
    try:
        hashes = {file.name: assembler.make(file) for file in plan.files}
    finally:
        assembler.close()
    promised = tuple(file.name for file in plan.files if file.sha256 is not None)
    return _land(store, name, stage, str(reference), plan, hashes, promised)


def _fetch_local(store: Store, name: str, reference: PathReference, progress: Progress) -> Entry:
    stage = _stage(store, name, str(reference), str(reference))
    files = stage / "files"
    try:
        files.mkdir(parents=True, exist_ok=True)
        hashes = {}
        for file in bring_in(reference.path, files, progress):
            progress.start(f"checking {file}", (files / file).stat().st_size)
            hashes[file] = hash_file(files / file, progress=progress.advance)
        plan = Plan(source=str(reference), files=())
        return _land(store, name, stage, str(reference), plan, hashes, ())
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _plan(reference: CatalogReference | WheelReference | HubReference | UrlReference) -> Plan:
    if isinstance(reference, CatalogReference):
        return look_up(reference.name).plan
    if isinstance(reference, HubReference):
        return plan_from_hub(reference)
    return plan_one(reference)


def _stage(store: Store, name: str, source: str, reference: str) -> Path:
    """Where this very model is put together; another source of the same name has another."""
    key = hashlib.sha256(f"{source}\n{reference}".encode()).hexdigest()[:12]
    return store.downloads() / f"{name}@{key}"


def _land(
    store: Store,
    name: str,
    stage: Path,
    reference: str,
    plan: Plan,
    hashes: dict[str, str],
    promised: tuple[str, ...],
) -> Entry:
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
