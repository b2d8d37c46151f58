"""Which sections of a file are finished, line by line in a file of its own.

A line is written when the section's bytes are on the disk, and is on the disk itself before the
next section begins: whatever a line names is there after a kill or a power cut. A line that was
cut is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


class Journal:
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
