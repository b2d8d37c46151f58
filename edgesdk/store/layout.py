"""Lay out the store's folder, describe what is in it, and let one process at a time change a model.

ROOT/checkpoints/NAME/   files as they came, with a record of their hashes
ROOT/bundles/NAME/       bundles, each with its manifest
ROOT/downloads/NAME@KEY/ what a pull has fetched so far; a later pull goes on from there
ROOT/locks/NAME.lock     held by the process that changes NAME
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesdk.bundle.manifest import FileEntry
from edgesdk.bundle.opening import hash_file, open_bundle
from edgesdk.errors import BundleError, DamagedCheckpoint, StoreBusy
from edgesdk.store.disk import StoreProgress, folder_size
from edgesdk.store.reference import check_model_name

RECORD_NAME = "edgesdk-checkpoint.json"
Kind = Literal["checkpoint", "bundle"]


@dataclass(frozen=True)
class StoreEntry:
    """One model in the store.

    Attributes:
        path: what a loader opens: the file of a checkpoint that is a single file, else the folder.
        size: bytes of its files.
        sha256: of a single-file checkpoint its file's; of one with several files that of their
            `sha256sum` listing in name order; of a bundle its manifest's. None when `problem` is
            not.
        source: where it came from, for good (an exact version, commit or path).
        problem: why it cannot be used, or None.
    """

    name: str
    kind: Kind
    path: Path
    size: int
    sha256: str | None
    licence: str | None
    source: str | None
    problem: str | None = None


class CheckpointRecord(BaseModel):
    """The record file of a pulled checkpoint.

    `reference` is what was pulled, `source` the exact version that it meant. `promised` lists the
    files whose hash the source named beforehand; the others' were computed when they arrived.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    reference: str
    source: str
    licence: str | None
    files: Annotated[tuple[FileEntry, ...], Field(min_length=1)]
    promised: tuple[str, ...]

    def to_json(self) -> bytes:
        """Canonical text."""
        fields = self.model_dump(mode="json")
        return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str:
        """One hash for all its files; see `StoreEntry`."""
        if len(self.files) == 1:
            return self.files[0].sha256
        lines = [f"{file.sha256}  {file.name}\n" for file in sorted(self.files, key=_by_name)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_record(folder: Path) -> CheckpointRecord:
    """Read the record of the checkpoint in `folder`; each file must be there with its size.

    Raises:
        DamagedCheckpoint: the record is missing or malformed, or a file is not as it says.
    """
    path = folder / RECORD_NAME
    try:
        record = CheckpointRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path} is missing.", hint=_pull_again_hint(folder)) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedCheckpoint(
            f"{path}: {place}: {first['msg']}.", hint=_pull_again_hint(folder)
        ) from None
    for file in record.files:
        found = folder / file.name
        if not found.is_file():
            raise DamagedCheckpoint(f"{found} is missing.", hint=_pull_again_hint(folder))
        if found.stat().st_size != file.size:
            raise DamagedCheckpoint(
                f"{found} has {found.stat().st_size:,} bytes; it had {file.size:,} when it was"
                " pulled.",
                hint=_pull_again_hint(folder),
            )
    return record


def verify_record(folder: Path, record: CheckpointRecord, progress: StoreProgress) -> None:
    """Hash every file of the checkpoint again."""
    for file in record.files:
        progress.start(f"checking {file.name}", file.size)
        found = hash_file(folder / file.name, progress=progress.advance)
        if found != file.sha256:
            raise DamagedCheckpoint(
                f"{folder / file.name} is damaged: its SHA-256 is {found}, it was {file.sha256}"
                " when it was pulled.",
                hint=_pull_again_hint(folder),
            )


def checkpoint_entry(folder: Path) -> StoreEntry:
    """The entry of the checkpoint in `folder`, whatever state it is in."""
    try:
        record = read_record(folder)
    except DamagedCheckpoint as error:
        return _damaged_entry(folder, "checkpoint", error.message)
    single = len(record.files) == 1
    return StoreEntry(
        name=folder.name,
        kind="checkpoint",
        path=folder / record.files[0].name if single else folder,
        size=record.size,
        sha256=record.sha256,
        licence=record.licence,
        source=record.source,
    )


def bundle_entry(folder: Path) -> StoreEntry:
    """The entry of the bundle in `folder`, whatever state it is in."""
    try:
        bundle = open_bundle(folder)
    except BundleError as error:
        return _damaged_entry(folder, "bundle", error.message)
    return StoreEntry(
        name=folder.name,
        kind="bundle",
        path=folder,
        size=bundle.size,
        sha256=bundle.sha256,
        licence=bundle.manifest.licence,
        source=bundle.manifest.source.name,
    )


def _damaged_entry(folder: Path, kind: Kind, problem: str) -> StoreEntry:
    return StoreEntry(folder.name, kind, folder, folder_size(folder), None, None, None, problem)


def _by_name(file: FileEntry) -> str:
    return file.name


def _pull_again_hint(folder: Path) -> str:
    return f"Pull {folder.name} again."


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
