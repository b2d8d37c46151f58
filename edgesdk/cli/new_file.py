"""A file that appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edgesdk.errors import RequestError


def write_new(path: Path, parts: Iterable[str]) -> None:
    """Write `parts` one after the other, beside the place of the file, and then put it there.

    Raises:
        RequestError: something stands at `path`, or it cannot be written.
    """
    if path.exists():
        raise RequestError(f"{path} exists already.", hint="Name another file.")
    beside = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        beside = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(parts)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)
