"""The store: pulled checkpoints and exported bundles, by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edgesdk.bundle.manifest import checkpoint_name
from edgesdk.bundle.opening import open_bundle, verify_bundle
from edgesdk.errors import DamagedBundle, DamagedCheckpoint, InvalidOption, UnknownModel
from edgesdk.store.disk import SILENT, StoreProgress
from edgesdk.store.download_plan import catalog
from edgesdk.store.layout import (
    CheckpointRecord,
    Kind,
    StoreEntry,
    StoreLayout,
    bundle_entry,
    checkpoint_entry,
    read_record,
    verify_record,
)
from edgesdk.store.reference import derive_name, is_model_name
from edgesdk.system.checks import suggestion
from edgesdk.system.home import default_root

# A bundle comes first where a checkpoint has the same name.
_ENTRY_OF: dict[Kind, Callable[[Path], StoreEntry]] = {
    "bundle": bundle_entry,
    "checkpoint": checkpoint_entry,
}


class Store:
    """Models on this machine. Opening one reads and writes nothing.

    A checkpoint and a bundle may share a name; where a kind is not given, the bundle is meant.
    Several processes may use one store at the same time.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        """Use the folder `root`; None means the one that EDGESDK_HOME names, or the user's."""
        self._layout = StoreLayout(default_root() if root is None else Path(root).expanduser())

    @property
    def root(self) -> Path:
        """The store's folder."""
        return self._layout.root

    def pull(
        self,
        reference: str | Path,
        *,
        name: str | None = None,
        progress: StoreProgress = SILENT,
        wait: float = 600.0,
    ) -> StoreEntry:
        """Fetch a model; one that is here already is returned at once.

        Args:
            reference: what to fetch: a path, or a text in a form of `edgesdk.store.reference`.
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

        return pull(self._layout, reference, name=name, progress=progress, wait=wait)

    def list(self) -> list[StoreEntry]:
        """All models, by name; those that cannot be used have a `problem`."""
        entries = [
            entry_of(folder)
            for kind, entry_of in _ENTRY_OF.items()
            for folder in self._layout.folders(kind)
        ]
        return sorted(entries, key=lambda entry: (entry.name, entry.kind))

    def find(self, name: str, kind: Kind | None = None) -> StoreEntry | None:
        """The model of that name, or None. Of two, the bundle.

        Raises:
            InvalidOption: it cannot be a name.
        """
        for candidate, entry_of in _ENTRY_OF.items():
            folder = self._layout.folder(name, candidate)
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
        return read_record(self.folder(name, "checkpoint"))

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
        folder = self.folder(name, entry.kind)
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
        with self._layout.locked(name, wait=wait, progress=SILENT):
            here = [found for k in _ENTRY_OF if (found := self.find(name, k)) is not None]
            if kind is None and len(here) > 1:
                raise InvalidOption(
                    f"{name!r} is a checkpoint and a bundle.", hint="Say which, with --kind."
                )
            entries = tuple(entry for entry in here if kind in (None, entry.kind))
            leftovers = () if kind == "bundle" else self._layout.unfinished(name)
            if not entries and not leftovers:
                self.get(name, kind)
            for folder in leftovers:
                shutil.rmtree(folder)
            for entry in entries:
                self._layout.discard(self.folder(name, entry.kind))
        return entries

    def folder(self, name: str, kind: Kind) -> Path:
        """The folder of a model of that name and kind, whether it is there or not.

        Raises:
            InvalidOption: it cannot be a name.
        """
        return self._layout.folder(name, kind)

    def bundle_path(self, name: str) -> Path:
        """Where an export writes the bundle of that name; the folder above it exists.

        Raises:
            InvalidOption: it cannot be a name.
        """
        path = self.folder(name, "bundle")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def require_usable(entry: StoreEntry) -> StoreEntry:
    """Return `entry` if it can be used.

    Raises:
        DamagedCheckpoint, DamagedBundle: it has a problem.
    """
    if entry.problem is None:
        return entry
    error = DamagedBundle if entry.kind == "bundle" else DamagedCheckpoint
    raise error(entry.problem, hint=f"Run: edgesdk remove {entry.name}, then get it again.")


def find_checkpoint(store: Store, what: str) -> tuple[Path, str, str | None]:
    """Where a checkpoint is, the name for its bundle, and its licence if the store knows it.

    Args:
        what: a path, or the name of a checkpoint in the store.

    Raises:
        UnknownModel: the store has no checkpoint of that name.
    """
    path = Path(what)
    if path.exists() or not is_model_name(what):
        return (
            path,
            derive_name(path.stem if path.suffix == ".gguf" else checkpoint_name(path)),
            None,
        )
    entry = store.get(what, "checkpoint")
    return entry.path, entry.name, entry.licence
