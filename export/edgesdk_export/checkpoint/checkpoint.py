"""Describe a checkpoint, whatever container it is stored in, and read the JSON files beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgesdk.errors import DamagedCheckpoint
from edgesdk_export.weights import LazyTensor

_HASH_CHUNK = 1 << 22
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. Its tensors are read when they are asked for; nothing is kept in memory.

    Attributes:
        path: the folder, or the GGUF file.
        container: what the weights are stored in.
        name: what the model calls itself, else the name of its folder or file.
        config: the parsed `config.json`, or the GGUF metadata by key.
        tensors: by the container's own names.
        files: the weight files, in name order.
        licence: as the model states it ("apache-2.0"), None where it does not.
        notes: what the user of an export should know of it, a sentence each.
    """

    path: Path
    container: Literal["safetensors", "gguf"]
    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]
    files: tuple[Path, ...]
    licence: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the files beside the weights are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types that the weights are stored in, in the container's spelling, sorted."""
        return tuple(sorted({tensor.dtype for tensor in self.tensors.values()}))

    def sha256(self) -> str:
        """Hash of the weight files' bytes, one after the other in name order. For a single file
        this is the hash that model hubs publish."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(_HASH_CHUNK):
                    digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class FileRegion:
    """Bytes of a file. They are read, not mapped: a file that shrinks under a map kills the
    process, and mapped pages would count towards its resident memory.

    Attributes:
        path: the file.
        offset: where the region starts, in bytes.
        tensor: whose bytes these are, for error messages.
    """

    path: Path
    offset: int
    tensor: str

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes [start, stop) of the region.

        Raises:
            DamagedCheckpoint: the file ends before `stop`.
        """
        buffer = np.empty(stop - start, dtype=np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start)
            filled = 0
            while filled < len(buffer):
                # One read call moves at most 2 GiB on Linux.
                count = file.readinto(buffer.data[filled:])
                if not count:
                    raise DamagedCheckpoint(
                        f"{self.path}: the file ends inside tensor '{self.tensor}'.",
                        hint="Download the checkpoint again.",
                    )
                filled += count
        return buffer


def refuse_pointer(path: Path) -> None:
    """Raise if a file is only a pointer of Git LFS, which a clone without it leaves.

    Raises:
        DamagedCheckpoint: it is.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) != _POINTER:
            return
    raise DamagedCheckpoint(
        f"{path} is a Git LFS pointer, not the file itself.",
        hint="Fetch the files with 'git lfs pull', or download the model with 'edgesdk pull'.",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DamagedCheckpoint: the file cannot be read, is not JSON, or is not an object.
    """
    if path.is_file():
        refuse_pointer(path)
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"{path} cannot be read: {error}.", hint="Download the checkpoint again."
        ) from None
    if not isinstance(value, dict):
        raise DamagedCheckpoint(
            f"{path} is not a JSON object.", hint="Download the checkpoint again."
        )
    return value
