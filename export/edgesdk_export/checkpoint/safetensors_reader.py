"""Read safetensors files: one, or shards with an index.

Format: 8 bytes little-endian header length, a JSON header, then the data
(https://github.com/huggingface/safetensors#format). The library's numpy front end cannot read
bfloat16, and every number in the header is checked here before anything relies on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.errors import CheckpointError, DamagedCheckpoint
from edgesdk_export.checkpoint.checkpoint import FileRegion, refuse_pointer
from edgesdk_export.checkpoint.weight_files import (
    INDEX_NAME,
    SINGLE_NAME,
    weight_files,
    weight_map,
)
from edgesdk_export.weights import Float32

# The limit of the reference implementation.
_MAX_HEADER = 100_000_000
_AGAIN = "Download the checkpoint again."

_ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_INTEGERS = {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U32": "<u4"}
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


@dataclass(frozen=True)
class SafetensorsTensor:
    """One tensor of a safetensors file; a `LazyTensor`."""

    region: FileRegion
    shape: tuple[int, ...]
    dtype: str

    def rows(self, start: int, stop: int) -> Float32:
        """Rows [start, stop) as float32 (float64 is rounded).

        Raises:
            CheckpointError: the type is not a float that can be read (float8, integers).
            DamagedCheckpoint: the file was cut since it was opened.
        """
        if self.dtype != "BF16" and self.dtype not in _FLOATS:
            raise CheckpointError(
                f"{self.region.path}: tensor '{self.region.tensor}' is stored as {self.dtype}, "
                "which means nothing without its quantizer's scales.",
                hint="Export from the original checkpoint in BF16, F16 or F32.",
            )
        return self._floats(self._bytes(start, stop), (stop - start, *self.shape[1:]))

    def scalar(self) -> Float32:
        """The only value of a tensor without dimensions."""
        return self._floats(self.region.read(0, _ITEM_SIZES[self.dtype]), ())

    def stored(self, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        """Rows [start, stop) of integers as they are, and of 8-bit floats as their bytes."""
        stop = self.shape[0] if stop is None else stop
        raw = self._bytes(start, stop).view(_INTEGERS.get(self.dtype, "u1"))
        return raw.reshape(stop - start, *self.shape[1:])

    def _bytes(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        width = math.prod(self.shape[1:]) * _ITEM_SIZES[self.dtype]
        return self.region.read(start * width, stop * width)

    def _floats(self, raw: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> Float32:
        if self.dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            bits = raw.view(np.uint16).astype(np.uint32) << 16
            return bits.view(np.float32).reshape(shape)
        return raw.view(_FLOATS[self.dtype]).astype(np.float32, copy=False).reshape(shape)


def read_safetensors_folder(
    folder: Path,
) -> tuple[dict[str, SafetensorsTensor], tuple[Path, ...]]:
    """Tensors by name, and the files that they are in, in name order. As for transformers, tensors
    count that an index does not list, and of two with one name the later file's.

    Raises:
        DamagedCheckpoint: see `weight_files` and `read_safetensors`; or the index lists a tensor
            that no file has.
    """
    files = weight_files(folder)
    tensors: dict[str, SafetensorsTensor] = {}
    for file in files:
        tensors.update(read_safetensors(file))
    indexed = (folder / INDEX_NAME).is_file() and not (folder / SINGLE_NAME).is_file()
    placed = weight_map(folder) if indexed else {}
    missing = sorted(set(placed) - set(tensors))
    if missing:
        raise DamagedCheckpoint(
            f"{folder / placed[missing[0]]}: lacks tensor '{missing[0]}', which {INDEX_NAME} "
            "places there.",
            hint=_AGAIN,
        )
    return tensors, files


def read_safetensors(path: Path) -> dict[str, SafetensorsTensor]:
    """The tensors of one file. Only the header is read.

    Raises:
        DamagedCheckpoint: the file is missing, is cut, or its header lies.
    """
    header, length, size = _read_header(path)
    header.pop("__metadata__", None)

    data_start, data_size = 8 + length, size - 8 - length
    tensors: dict[str, SafetensorsTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _parse_entry(path, name, entry, data_size)
        spans.append((begin, end, name))
        tensors[name] = SafetensorsTensor(FileRegion(path, data_start + begin, name), shape, dtype)

    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            what = "overlaps another one" if begin < reached else "leaves a gap before it"
            raise DamagedCheckpoint(f"{path}: tensor '{name}' {what}.", hint=_AGAIN)
        reached = end
    if reached != data_size:
        raise DamagedCheckpoint(
            f"{path}: its tensors take {reached:,} bytes, but {data_size:,} follow the header.",
            hint=_AGAIN,
        )
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of one file: texts by name.

    Raises:
        DamagedCheckpoint: see `read_safetensors`.
    """
    header, _, _ = _read_header(path)
    found = header.get("__metadata__")
    return found if isinstance(found, dict) else {}


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, its length in bytes, and that of the file."""
    if not path.is_file():
        raise DamagedCheckpoint(f"{path} is missing.", hint=_AGAIN)
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
            raise DamagedCheckpoint(
                f"{path}: the header claims {length:,} bytes; the file has {size:,}.", hint=_AGAIN
            )
        text = file.read(length)
    return _parse_header(path, text), length, size


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: the header is not JSON: {error}.", hint=_AGAIN) from None
    if not isinstance(header, dict):
        raise DamagedCheckpoint(f"{path}: the header is not a JSON object.", hint=_AGAIN)
    return header


def _parse_entry(
    path: Path, name: str, entry: object, data_size: int
) -> tuple[str, tuple[int, ...], int, int]:
    def damaged(what: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"{path}: tensor '{name}' {what}.", hint=_AGAIN)

    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged("has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_SIZES:
        raise damaged(f"has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
        raise damaged(f"has the shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise damaged(f"has the offsets {offsets!r}")
    begin, end = offsets
    if not begin <= end <= data_size:
        raise damaged(f"lies at bytes {begin:,} to {end:,} of {data_size:,}")
    needed = math.prod(shape) * _ITEM_SIZES[dtype]
    if end - begin != needed:
        raise damaged(f"has {end - begin:,} bytes; {dtype} {shape} takes {needed:,}")
    return dtype, tuple(shape), begin, end


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result
