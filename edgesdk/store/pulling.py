"""Pull a model: plan it, fetch it into a staging folder, check it, and move it to its place."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from edgesdk.bundle.manifest import FileEntry
from edgesdk.bundle.opening import hash_file, is_bundle, open_bundle, verify_bundle
from edgesdk.errors import StoreError, UnknownModel
from edgesdk.store.disk import folder_size, link_or_copy, require_space
from edgesdk.store.download_plan import (
    DownloadPlan,
    choose_checkpoint_files,
    find_in_catalog,
    plan_download,
)
from edgesdk.store.entries import (
    RECORD_NAME,
    CheckpointRecord,
    StoreEntry,
    bundle_entry,
    checkpoint_entry,
    read_record,
)
from edgesdk.store.file_builder import FileBuilder
from edgesdk.store.layout import StoreLayout
from edgesdk.store.progress import StoreProgress
from edgesdk.store.reference import (
    CatalogReference,
    PathReference,
    Reference,
    check_model_name,
    parse_reference,
    safe_file_name,
)
from edgesdk.system.atomic_files import flush_folder, write_atomically


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
