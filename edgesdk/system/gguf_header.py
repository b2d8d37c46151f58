"""Read the header of a GGUF file, believing nothing in it.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Single values are read at once,
arrays when they are asked for: a vocabulary may have 250,000 texts.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# Far above any real model, and low enough that a lie neither fills the memory nor takes minutes.
MAX_ENTRIES = 2**20
MAX_ARRAY = 2**22
_MAX_STRING = 2**24
_MAX_DIMENSIONS = 4
_MAX_AXIS = 2**40
_MAX_QUOTED = 80

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]


class GgufError(ValueError):
    """A header that cannot be used. The message is a sentence without its subject's path and
    without a full stop; the engine and the exporter make their own errors of it."""


class NotGguf(GgufError):
    """The file is of another format."""


class DamagedGguf(GgufError):
    """The header is cut, or what it says cannot be true."""


class UnsupportedGguf(GgufError):
    """The header is of a version that is not read here."""


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata, decoded when it is asked for.

    Attributes:
        kind: GGUF's number of the type of its items.
        length: how many items there are.
        raw: their bytes.
    """

    kind: int
    length: int
    raw: bytes

    @property
    def is_texts(self) -> bool:
        """Whether the items are texts; else they are numbers or truth values."""
        return self.kind == _STRING

    def numbers(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The items of an array of numbers or truth values."""
        return np.frombuffer(self.raw, np.dtype(_SCALARS[self.kind].format))

    def texts(self) -> Iterator[bytes]:
        """The items of an array of texts, which should be UTF-8."""
        raw, at, size_at = self.raw, 0, _U64.unpack_from
        for _ in range(self.length):
            start = at + 8
            at = start + size_at(raw, at)[0]
            yield raw[start:at]


Scalar: TypeAlias = int | float | str


@dataclass(frozen=True)
class GgufTensorEntry:
    """One entry of the list of tensors.

    Attributes:
        shape: rows first (GGUF stores it the other way round).
        type: ggml's number of its type.
        offset: from the start of the data, in bytes.
        size: bytes up to the next tensor or the end of the file, padding counted.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the data of a GGUF file.

    Attributes:
        metadata: by key, in the order of the file. Bytes of single texts that are not UTF-8 are
            lone surrogates.
        tensors: in the order of the file's list.
        alignment: of the tensors, in bytes.
        data_start: where the data begin, from the start of the file.
        file_size: bytes of the whole file.
    """

    metadata: Mapping[str, Scalar | GgufArray]
    tensors: tuple[GgufTensorEntry, ...]
    alignment: int
    data_start: int
    file_size: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file.

    Raises:
        NotGguf, DamagedGguf, UnsupportedGguf: it cannot be used.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        magic = stream.read(4)
        if magic != b"GGUF":
            raise NotGguf(f"it starts with {magic!r}")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(data).parse()


def quoted(name: str) -> str:
    """A name of the header for a message: short, also where it is damaged."""
    return repr(name if len(name) <= _MAX_QUOTED else f"{name[:_MAX_QUOTED]}...")


class _Parser:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._size = len(data)
        self._at = 4

    def parse(self) -> GgufHeader:
        version = self._number(_U32, "the version")
        if version not in _VERSIONS:
            kind = "a big-endian file" if version & 0xFFFF == 0 else f"version {version}"
            raise UnsupportedGguf(f"{kind} of GGUF is not supported")
        tensor_count = self._count(_U64, "the number of tensors", MAX_ENTRIES)
        entry_count = self._count(_U64, "the number of metadata entries", MAX_ENTRIES)
        metadata: dict[str, Scalar | GgufArray] = {}
        for _ in range(entry_count):
            key = self._string("a metadata key")
            if key in metadata:
                raise DamagedGguf(f"the metadata key {quoted(key)} occurs twice")
            metadata[key] = self._value(f"the value of {quoted(key)}")
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise DamagedGguf(f"the alignment {str(alignment)[:_MAX_QUOTED]} is no power of two")
        entries = [self._tensor() for _ in range(tensor_count)]
        data_start = -(-self._at // alignment) * alignment
        tensors = _sized(entries, data_start, self._size)
        return GgufHeader(metadata, tensors, alignment, data_start, self._size)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("a tensor name")
        axes = self._count(_U32, f"the number of axes of {quoted(name)}", _MAX_DIMENSIONS)
        sizes = [self._count(_U64, f"the shape of {quoted(name)}", _MAX_AXIS) for _ in range(axes)]
        if not sizes or 0 in sizes:
            raise DamagedGguf(f"tensor {quoted(name)} is empty")
        kind = self._number(_U32, f"the type of {quoted(name)}")
        offset = self._number(_U64, f"the offset of {quoted(name)}")
        return name, tuple(reversed(sizes)), kind, offset

    def _value(self, where: str) -> Scalar | GgufArray:
        kind = self._number(_U32, where)
        if kind == _STRING:
            return self._string(where)
        if kind != _ARRAY:
            value: Scalar = self._number(self._scalar(kind, where), where)
            return value
        kind = self._number(_U32, where)
        if kind == _ARRAY:
            raise DamagedGguf(f"{where} is an array of arrays")
        layout = None if kind == _STRING else self._scalar(kind, where)
        length = self._count(_U64, where, MAX_ARRAY)
        start = self._at
        if layout is None:
            self._skip_strings(length, where)
        else:
            self._skip(length * layout.size, where)
        return GgufArray(kind, length, self._data[start : self._at])

    def _skip_strings(self, length: int, where: str) -> None:
        data, at, size_at = self._data, self._at, _U64.unpack_from
        try:
            for _ in range(length):
                size = size_at(data, at)[0]
                if size > _MAX_STRING:
                    raise DamagedGguf(f"{where} claims {size:,}")
                at += 8 + size
        except struct.error:
            at = self._size + 1
        self._at = at
        self._skip(0, where)

    def _scalar(self, kind: int, where: str) -> struct.Struct:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise DamagedGguf(f"{where} has the unknown type {kind}")
        return layout

    def _string(self, where: str) -> str:
        size = self._count(_U64, where, _MAX_STRING)
        start = self._at
        self._skip(size, where)
        return self._data[start : self._at].decode("utf-8", "surrogateescape")

    def _count(self, layout: struct.Struct, where: str, limit: int) -> int:
        value: int = self._number(layout, where)
        if value > limit:
            raise DamagedGguf(f"{where} claims {value:,}")
        return value

    def _number(self, layout: struct.Struct, where: str) -> Any:
        start = self._at
        self._skip(layout.size, where)
        return layout.unpack_from(self._data, start)[0]

    def _skip(self, size: int, where: str) -> None:
        self._at += size
        if self._at > self._size:
            raise DamagedGguf(f"the file ends inside {where}")


def _sized(
    entries: list[tuple[str, tuple[int, ...], int, int]], data_start: int, file_size: int
) -> tuple[GgufTensorEntry, ...]:
    end = file_size - data_start
    offsets = sorted({offset for *_, offset in entries if offset < end})
    after = dict(itertools.pairwise([*offsets, end]))
    found: dict[str, GgufTensorEntry] = {}
    for name, shape, kind, offset in entries:
        if name in found:
            raise DamagedGguf(f"tensor {quoted(name)} occurs twice")
        if offset not in after:
            raise DamagedGguf(
                f"tensor {quoted(name)} would lie at byte {data_start + offset:,}; the file has"
                f" {file_size:,}"
            )
        found[name] = GgufTensorEntry(name, shape, kind, offset, after[offset] - offset)
    return tuple(found.values())
