"""Refuse a damaged `.tflite` before LiteRT reads it, because LiteRT trusts what it maps."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from edgesdk.errors import DamagedBundle

_HINT = "Pull or export the model again."


def check_file(path: Path) -> None:
    """Parse the flatbuffer of a file, and see that all its buffers lie within the file.

    Raises:
        DamagedBundle: it is no `.tflite`, or a part of it is missing.
    """
    from ai_edge_litert import schema_py_generated as schema

    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(8)[4:] != b"TFL3":
            raise DamagedBundle(f"{path} is not a .tflite file.", hint=_HINT)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                model = schema.Model.GetRootAs(data, 0)
                ends = [
                    buffer.Offset() + buffer.Size()
                    for buffer in map(model.Buffers, range(model.BuffersLength()))
                ]
            # What a parser of another's bytes may raise.
            except (struct.error, ValueError, IndexError, TypeError, AttributeError) as error:
                raise DamagedBundle(f"{path} is damaged: {error}.", hint=_HINT) from None
    if not ends or max(ends) > size:
        raise DamagedBundle(f"{path} is damaged: it is cut off.", hint=_HINT)
