"""A file that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgesdk.errors import RequestError
from edgesdk.system.atomic_files import atomic_file


def write_new(path: Path, parts: Iterable[str]) -> None:
    """Write `parts` one after the other, beside the place of the file, and then put it there.

    Raises:
        RequestError: something stands at `path`, or it cannot be written.
    """
    if path.exists():
        raise RequestError(f"{path} exists already.", hint="Name another file.")
    try:
        with atomic_file(path, private=True) as stream:
            stream.writelines(part.encode() for part in parts)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}.") from None
