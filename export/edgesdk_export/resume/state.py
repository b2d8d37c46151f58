"""Keep the finished pieces of a stopped export on the disk.

Arrays are there whole, or not at all. A data file has a journal of its finished sections, one a
line: a line is written when the section's bytes are on the disk, and is on the disk itself before
the next section begins. So whatever a line names is there after a kill or a power cut. A line that
was cut counts as none.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from edgesdk.system.atomic_files import atomic_file

_DONE = "layers done"

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


class ResumeState:
    """A folder of finished pieces.

    Args:
        folder: it exists; who goes on with an export is given the same one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for leftover in folder.glob(".*.npz.*"):
            # Of a save that was killed.
            leftover.unlink()

    def journal(self, data_file: str) -> SectionJournal:
        """Of a data file of the bundle."""
        return SectionJournal(self._folder / f"{data_file}.journal")

    def clear_unfinished(self, bundle: Path) -> None:
        """Remove files without a journal from the folder of an unfinished bundle."""
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
        with atomic_file(self._file(name)) as file:
            # Its signature takes no names that may be anything.
            save: Callable[..., None] = np.savez
            save(file, **arrays)

    def drop(self, name: str) -> None:
        """Forget what was saved under a name."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.npz"


def compute_once(resume: ResumeState | None, name: str, compute: Callable[[], Arrays]) -> Arrays:
    """Compute something, unless an earlier process finished it; then return its result."""
    found = None if resume is None else resume.load(name)
    if found is None:
        found = compute()
        if resume is not None:
            resume.save(name, found)
    return found


def carry_through_layers(
    resume: ResumeState | None,
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
    found = None if resume is None else resume.load(name)
    if found is None:
        done, carried = 0, first()
    else:
        done, carried = int(found[_DONE]), {k: v for k, v in found.items() if k != _DONE}
        if progress is not None and done:
            progress(done)
    for index in range(done, layers):
        carried = step(index, carried)
        if resume is not None:
            resume.save(name, {**carried, _DONE: np.array(index + 1)})
        if progress is not None:
            progress(index + 1)
    return carried


class SectionJournal:
    """The finished sections of one data file, which is written front to back.

    Args:
        path: of the journal; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sections: dict[str, dict[str, Any]] = {}
        self._length = 0
        if path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                if not self._read(line):
                    break
                self._length += len(line)

    @property
    def sections(self) -> Mapping[str, Any]:
        """Section -> its note, in the order in which they were finished."""
        return {name: entry["note"] for name, entry in self._sections.items()}

    def open(self, data: Path) -> BinaryIO:
        """The data file, for writing behind what is finished; a new one where nothing is."""
        end = max((entry["end"] for entry in self._sections.values()), default=0)
        if not data.is_file() or data.stat().st_size < end:
            self._sections, self._length, end = {}, 0, 0
        if end == 0:
            return data.open("wb")
        stream = data.open("r+b")
        stream.truncate(end)
        stream.seek(end)
        return stream

    def finish(self, section: str, stream: BinaryIO, note: object) -> None:
        """All that was written to `stream` so far is the section and those before it.

        Args:
            note: JSON values that come back with the section.
        """
        stream.flush()
        os.fsync(stream.fileno())
        entry = {"section": section, "end": stream.tell(), "note": note}
        line = json.dumps(entry).encode() + b"\n"
        with self._path.open("r+b" if self._length else "wb") as file:
            file.truncate(self._length)
            file.seek(self._length)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._length += len(line)
        self._sections[section] = entry

    def _read(self, line: bytes) -> bool:
        try:
            entry = json.loads(line)
            section, whole = entry["section"], line.endswith(b"\n") and "note" in entry
            if whole and isinstance(section, str) and isinstance(entry["end"], int):
                self._sections[section] = entry
                return True
        except (ValueError, KeyError, TypeError):
            pass
        return False
