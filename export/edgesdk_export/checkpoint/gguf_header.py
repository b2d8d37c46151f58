"""Parse the header of a GGUF file, believing nothing in it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package's own reader
trusts every count and offset and takes seconds for a vocabulary of 150,000 tokens; its tables of
types and its dequantizers are used, its parser is not.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)

from edgesdk.errors import CheckpointError, DamagedCheckpoint

_VERSIONS = (2, 3)
# Far above any real model, and low enough that a lie cannot fill the memory.
_MAX_ENTRIES = 2**20
_MAX_STRING = 2**24
_MAX_ARRAY = 2**22
_MAX_DIMENSIONS = 4

_AGAIN = "Download the checkpoint again."

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        shape: rows first (GGUF stores it the other way round).
        offset: from the start of the file, in bytes.
        row_bytes: bytes of one row of the innermost axis.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    row_bytes: int

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the data: metadata by key (lists for arrays), and tensors in order."""

    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse and check the header of a GGUF file.

    Raises:
        DamagedCheckpoint: the file is no GGUF, is cut, or its header lies.
        CheckpointError: it is big-endian, of an unknown version or split over several files.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=1 << 20) as file:
        return _Parser(path, file, size).parse()


class _Parser:
    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size

    def parse(self) -> GgufHeader:
        if self._take(4, "the magic number") != b"GGUF":
            raise DamagedCheckpoint(f"{self._path} is not a GGUF file.", hint=_AGAIN)
        version = self._number("<u4", "the version")
        if version not in _VERSIONS:
            kind = "a big-endian file" if version & 0xFFFF == 0 else f"version {version}"
            raise CheckpointError(
                f"{self._path}: {kind} of GGUF is not supported.",
                hint="Convert the model again with a current llama.cpp.",
            )
        tensor_count = self._count("<u8", "the number of tensors", _MAX_ENTRIES)
        entry_count = self._count("<u8", "the number of metadata entries", _MAX_ENTRIES)

        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = self._string("a metadata key")
            if key in metadata:
                raise self._damaged(f"the metadata key '{key}' occurs twice")
            metadata[key] = self._value(key)
        if metadata.get("split.count", 1) not in (0, 1):
            raise CheckpointError(
                f"{self._path} is one part of a model that is split over several files.",
                hint="Join the parts first: llama-gguf-split --merge FIRST_PART OUT.gguf.",
            )
        entries = [self._tensor_entry() for _ in range(tensor_count)]
        return GgufHeader(metadata, self._place(entries, metadata))

    def _place(
        self,
        entries: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]],
        metadata: Mapping[str, Any],
    ) -> tuple[TensorInfo, ...]:
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"the alignment {alignment!r} is no power of two")
        data_start = -(-self._file.tell() // alignment) * alignment

        placed: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in entries:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if name in placed:
                raise self._damaged(f"tensor '{name}' occurs twice")
            if shape[-1] % block:
                raise self._damaged(
                    f"tensor '{name}' has rows of {shape[-1]:,} values; {kind.name} stores them "
                    f"in blocks of {block}"
                )
            row_bytes = shape[-1] // block * block_bytes
            info = TensorInfo(name, shape, kind, data_start + offset, row_bytes)
            if offset % alignment or info.offset + info.size > self._size:
                raise self._damaged(
                    f"tensor '{name}' would lie at bytes {info.offset:,} to "
                    f"{info.offset + info.size:,}; the file has {self._size:,}"
                )
            placed[name] = info

        reached = data_start
        for info in sorted(placed.values(), key=lambda info: info.offset):
            if info.offset < reached:
                raise self._damaged(f"tensor '{info.name}' overlaps another one")
            reached = info.offset + info.size
        return tuple(placed.values())

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string("a tensor name")
        axes = self._count("<u4", f"the number of axes of '{name}'", _MAX_DIMENSIONS)
        sizes = [self._count("<u8", f"the shape of '{name}'", 2**40) for _ in range(axes)]
        if not sizes or 0 in sizes:
            raise self._damaged(f"tensor '{name}' is empty")
        raw_type = self._number("<u4", f"the type of '{name}'")
        try:
            kind = GGMLQuantizationType(raw_type)
        except ValueError:
            raise self._damaged(f"tensor '{name}' has the unknown type {raw_type}") from None
        offset = self._number("<u8", f"the offset of '{name}'")
        return name, tuple(reversed(sizes)), kind, offset

    def _value(self, key: str) -> Any:
        where = f"the value of '{key}'"
        kind = self._value_type(where)
        if kind is GGUFValueType.STRING:
            return self._string(where)
        if kind is not GGUFValueType.ARRAY:
            return self._number(_SCALARS[kind], where)
        item = self._value_type(where)
        if item is GGUFValueType.ARRAY:
            raise self._damaged(f"{where} is an array of arrays")
        count = self._count("<u8", where, _MAX_ARRAY)
        if item is GGUFValueType.STRING:
            return [self._string(where) for _ in range(count)]
        dtype = np.dtype(_SCALARS[item])
        return np.frombuffer(self._take(count * dtype.itemsize, where), dtype).tolist()

    def _value_type(self, where: str) -> GGUFValueType:
        raw = self._number("<u4", where)
        try:
            return GGUFValueType(raw)
        except ValueError:
            raise self._damaged(f"{where} has the unknown type {raw}") from None

    def _string(self, where: str) -> str:
        raw = self._take(self._count("<u8", where, _MAX_STRING), where)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._damaged(f"{where} is not UTF-8") from None

    def _count(self, dtype: str, where: str, limit: int) -> int:
        value = self._number(dtype, where)
        if value > limit:
            raise self._damaged(f"{where} claims {value:,}")
        return int(value)

    def _number(self, dtype: str, where: str) -> Any:
        unpack, size = _UNPACK[dtype]
        return unpack(self._take(size, where))[0]

    def _take(self, count: int, where: str) -> bytes:
        taken = self._file.read(count)
        if len(taken) < count:
            raise self._damaged(f"the file ends inside {where}")
        return taken

    def _damaged(self, what: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(f"{self._path}: {what}.", hint=_AGAIN)


def _unpacker(dtype: str) -> tuple[Callable[[bytes], tuple[Any, ...]], int]:
    fmt = struct.Struct("<" + np.dtype(dtype).char.replace("l", "q").replace("L", "Q"))
    return fmt.unpack, fmt.size


_UNPACK = {dtype: _unpacker(dtype) for dtype in _SCALARS.values()}
