"""Finished pieces of an export on the disk: arrays by name, whole or not there."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgesdk_export.resume.journal import Journal

_DONE = "layers done"

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


class Kept:
    """A folder of finished pieces.

    Args:
        folder: it exists; who goes on with an export is given the same one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def journal(self, data_file: str) -> Journal:
        """Of a data file of the bundle."""
        return Journal(self._folder / f"{data_file}.journal")

    def clear_unfinished(self, bundle: Path) -> None:
        """Remove what no journal vouches for from the folder of a bundle to be."""
        for path in bundle.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif not (self._folder / f"{path.name}.journal").is_file():
                path.unlink()

    def load(self, name: str) -> Arrays | None:
        """What was saved under a name; None = nothing."""
        try:
            with np.load(self._file(name), allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, name: str, arrays: Arrays) -> None:
        """Save arrays under a name; what was there before stays until they are on the disk."""
        path = self._file(name)
        beside = path.with_suffix(".part")
        with beside.open("wb") as file:
            # Its signature takes no names that may be anything.
            save: Callable[..., None] = np.savez
            save(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    def drop(self, name: str) -> None:
        """Forget what was saved under a name."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


def remembered(kept: Kept | None, name: str, compute: Callable[[], Arrays]) -> Arrays:
    """The result of a computation, which is done again only if it was not finished."""
    found = None if kept is None else kept.load(name)
    if found is None:
        found = compute()
        if kept is not None:
            kept.save(name, found)
    return found


def over_layers(
    kept: Kept | None,
    name: str,
    layers: int,
    first: Callable[[], Arrays],
    step: Callable[[int, Arrays], Arrays],
    progress: Callable[[int], None] | None = None,
) -> Arrays:
    """Carry arrays through the layers, on from the last finished one.

    Args:
        name: of this pass, among all that the export makes.
        first: gives what is carried into layer 0.
        step: gives what layer `index` makes of what is carried into it. That is all it may depend
            on beside the export's inputs.
        progress: called with the number of layers that are over.
    """
    found = None if kept is None else kept.load(name)
    if found is None:
        done, carried = 0, first()
    else:
        done, carried = int(found[_DONE]), {k: v for k, v in found.items() if k != _DONE}
        if progress is not None and done:
            progress(done)
    for index in range(done, layers):
        carried = step(index, carried)
        if kept is not None:
            kept.save(name, {**carried, _DONE: np.array(index + 1)})
        if progress is not None:
            progress(index + 1)
    return carried
