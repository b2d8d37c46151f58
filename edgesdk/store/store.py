"""The store: a folder of pulled checkpoints and exported bundles.

ROOT/checkpoints/NAME/   files as they came, with a record of their hashes
ROOT/bundles/NAME/       bundles, each with its manifest
ROOT/downloads/NAME@KEY/ what a pull has fetched so far; a later pull goes on from there
ROOT/locks/NAME.lock     held by the process that changes NAME
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgesdk.bundle.opening import open_bundle, verify_bundle
from edgesdk.errors import DamagedBundle, DamagedCheckpoint, InvalidOption, UnknownModel
from edgesdk.store.catalog import catalog
from edgesdk.store.entries import (
    CheckpointRecord,
    Kind,
    StoreEntry,
    bundle_entry,
    checkpoint_entry,
    read_record,
    verify_record,
)
from edgesdk.store.progress import SILENT, StoreProgress
from edgesdk.store.reference import check_model_name, suggestion

_ENTRY_OF: dict[Kind, Callable[[Path], StoreEntry]] = {
    "bundle": bundle_entry,
    "checkpoint": checkpoint_entry,
}


def default_root() -> Path:
    """The folder that EDGESDK_HOME names, else the user's data folder of this system."""
    named = os.environ.get("EDGESDK_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_path("edgesdk", appauthor=False))


class Store:
    """Models on this machine. Opening one reads and writes nothing.

    A checkpoint and a bundle may share a name; where a kind is not given, the bundle is meant.
    Several processes may use one store at the same time.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Use the folder `root`; None means `default_root()`."""
        self.root = default_root() if root is None else root

    def pull(
        self,
        reference: str,
        *,
        name: str | None = None,
        progress: StoreProgress = SILENT,
        wait: float = 600.0,
    ) -> StoreEntry:
        """Fetch a model; one that is here already is returned at once.

        Args:
            reference: what to fetch, in a form of `edgesdk.store.reference`.
            name: what to call it here; None takes the reference's own name.
            wait: seconds to wait for another process that pulls the same model.

        Raises:
            InvalidOption: the reference or the name is malformed.
            UnknownModel: the source does not have it; the hint carries the nearest names.
            StoreError: the name is taken by a model from elsewhere.
            DownloadFailed: the network or the source failed; a later pull goes on from there.
            HashMismatch: what arrived is not what was promised; it is removed.
            NotEnoughSpace: the disk cannot hold it.
            StoreBusy: another process was still at it after `wait` seconds.
        """
        from edgesdk.store.pulling import pull

        return pull(self, reference, name=name, progress=progress, wait=wait)

    def list(self) -> list[StoreEntry]:
        """All models, by name; those that cannot be used have a `problem`."""
        entries = [
            entry_of(folder)
            for kind, entry_of in _ENTRY_OF.items()
            for folder in _folders(self._home(kind))
        ]
        return sorted(entries, key=lambda entry: (entry.name, entry.kind))

    def find(self, name: str, kind: Kind | None = None) -> StoreEntry | None:
        """The model of that name, or None. Of two, the bundle.

        Raises:
            InvalidOption: it cannot be a name.
        """
        check_model_name(name)
        for candidate, entry_of in _ENTRY_OF.items():
            folder = self._home(candidate) / name
            if kind in (None, candidate) and folder.is_dir():
                return entry_of(folder)
        return None

    def get(self, name: str, kind: Kind | None = None) -> StoreEntry:
        """The model of that name. Of two, the bundle.

        Raises:
            UnknownModel: it is not here; the hint says how to get it, or the nearest names.
            InvalidOption: it cannot be a name.
        """
        entry = self.find(name, kind)
        if entry is not None:
            return entry
        what = "model" if kind is None else kind
        if kind != "bundle" and name in catalog():
            hint = f"Run: edgesdk pull {name}"
        else:
            here = [other.name for other in self.list() if kind in (None, other.kind)]
            known = [*here, *(catalog() if kind != "bundle" else ())]
            hint = suggestion(name, known) or "See: edgesdk list"
        raise UnknownModel(f"The store has no {what} {name!r}.", hint=hint)

    def record(self, name: str) -> CheckpointRecord:
        """What was written down when the checkpoint was pulled.

        Raises:
            UnknownModel: no such checkpoint is here.
            DamagedCheckpoint: the record or a file is not as it was.
        """
        self.get(name, "checkpoint")
        return read_record(self._home("checkpoint") / name)

    def verify(
        self, name: str, kind: Kind | None = None, *, progress: StoreProgress = SILENT
    ) -> StoreEntry:
        """Hash every file again; the entry, if all is as it was.

        Raises:
            UnknownModel: it is not here.
            DamagedCheckpoint, DamagedBundle: a file is missing or has changed.
            UnsupportedBundle: the bundle is of another format version.
        """
        entry = self.get(name, kind)
        folder = self._home(entry.kind) / name
        if entry.kind == "bundle":
            bundle = open_bundle(folder)
            progress.start(f"checking {name}", bundle.size)
            verify_bundle(bundle, progress=progress.advance)
        else:
            verify_record(folder, read_record(folder), progress)
        return entry

    def remove(
        self, name: str, kind: Kind | None = None, *, wait: float = 10.0
    ) -> tuple[StoreEntry, ...]:
        """Remove a model, and what an unfinished pull of that name left; what was removed.

        Raises:
            UnknownModel: there is nothing of that name.
            InvalidOption: a checkpoint and a bundle have the name, and no kind is given.
            StoreBusy: another process works on it.
        """
        from edgesdk.store.locking import locked

        check_model_name(name)
        with locked(self.lock_path(name), what=name, wait=wait, progress=SILENT):
            here = [found for k in _ENTRY_OF if (found := self.find(name, k)) is not None]
            if kind is None and len(here) > 1:
                raise InvalidOption(
                    f"{name!r} is a checkpoint and a bundle.", hint="Say which, with --kind."
                )
            entries = tuple(entry for entry in here if kind in (None, entry.kind))
            leftovers = () if kind == "bundle" else self.unfinished(name)
            if not entries and not leftovers:
                self.get(name, kind)
            for folder in leftovers:
                shutil.rmtree(folder)
            for entry in entries:
                self.retire(self._home(entry.kind) / name)
        return entries

    def bundle_path(self, name: str) -> Path:
        """Where an export writes the bundle of that name; the folder above it exists.

        Raises:
            InvalidOption: it cannot be a name.
        """
        home = self._home("bundle")
        home.mkdir(parents=True, exist_ok=True)
        return home / check_model_name(name)

    def place(self, name: str, kind: Kind) -> Path:
        """The folder of a model of that name and kind, whether it is there or not."""
        return self._home(kind) / check_model_name(name)

    def lock_path(self, name: str) -> Path:
        """The file that the process which changes `name` holds locked."""
        return self.root / "locks" / f"{check_model_name(name)}.lock"

    def downloads(self) -> Path:
        """The folder of unfinished pulls; it exists."""
        folder = self.root / "downloads"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def unfinished(self, name: str) -> tuple[Path, ...]:
        """Folders of unfinished pulls of that name."""
        return tuple(sorted((self.root / "downloads").glob(f"{check_model_name(name)}@*")))

    def retire(self, folder: Path) -> None:
        """Remove a model's folder: it goes at once, not file by file."""
        trash = Path(tempfile.mkdtemp(prefix=".trash-", dir=self.downloads()))
        folder.replace(trash / folder.name)
        shutil.rmtree(trash)

    def _home(self, kind: Kind) -> Path:
        return self.root / f"{kind}s"


def require_usable(entry: StoreEntry) -> StoreEntry:
    """`entry` itself.

    Raises:
        DamagedCheckpoint, DamagedBundle: it has a problem.
    """
    if entry.problem is None:
        return entry
    error = DamagedBundle if entry.kind == "bundle" else DamagedCheckpoint
    raise error(entry.problem, hint=f"Run: edgesdk remove {entry.name}, then get it again.")


def _folders(home: Path) -> list[Path]:
    if not home.is_dir():
        return []
    return [path for path in home.iterdir() if path.is_dir() and not path.name.startswith(".")]
