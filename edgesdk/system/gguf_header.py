"""Read the header of a GGUF file without loading the model."""

from __future__ import annotations

import itertools
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from edgesdk.engines.gguf.header import MOST_ITEMS
from edgesdk.errors import EngineError

_PROLOGUE = struct.Struct("<4sIQQ")
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
_STRING, _ARRAY = 8, 9
_HINT = "Download or export the model again."
_LARGEST = 2**40

Value: TypeAlias = int | float | str


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry.

    Attributes:
        rows: its outer dimension; 1 for a vector.
        kind: ggml's number of its type.
        size: bytes in the file, padding counted.
    """

    name: str
    rows: int
    kind: int
    size: int


@dataclass(frozen=True)
class Metadata:
    """The header of one file.

    Attributes:
        values: single values, by key.
        lengths: of the arrays, by key.
        largest: the largest number of each array of numbers, by key.
        tensors: in the order of the file's list.
    """

    values: dict[str, Value]
    lengths: dict[str, int]
    largest: dict[str, float]
    tensors: tuple[Tensor, ...]

    def number(self, key: str, default: int) -> int:
        """The number under `ARCHITECTURE.key`; of an array with one per layer, the largest.

        Raises:
            EngineError: it is not a count of anything.
        """
        full = f"{self.values.get('general.architecture', '')}.{key}"
        value = self.values.get(full, self.largest.get(full, default))
        if isinstance(value, str):
            return default
        if not 0 <= value <= _LARGEST:
            raise EngineError(f"The GGUF header is damaged: {full!r} is {value}.", hint=_HINT)
        return int(value)


def read_metadata(path: Path) -> Metadata:
    """Read the header of a GGUF file.

    Raises:
        EngineError: the file cannot be read, is no GGUF file, or is damaged.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise EngineError(f"{path} is not a GGUF file.", hint=_HINT)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data).metadata()
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}.") from None
    except (struct.error, KeyError, ValueError, ArithmeticError) as error:
        raise EngineError(f"The GGUF header of {path} is damaged: {error!r}.", hint=_HINT) from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._offset = 0

    def metadata(self) -> Metadata:
        _, _, tensor_count, entry_count = _PROLOGUE.unpack_from(self._data)
        self._offset = _PROLOGUE.size
        found = Metadata({}, {}, {}, ())
        for _ in range(entry_count):
            self._entry(found)
        entries = [self._tensor() for _ in range(tensor_count)]
        alignment = int(found.values.get("general.alignment", 32))
        start = -(-self._offset // alignment) * alignment
        ends = sorted({offset for *_, offset in entries} | {len(self._data) - start})
        after = dict(itertools.pairwise(ends))
        tensors = tuple(
            Tensor(name, rows, kind, after[offset] - offset) for name, rows, kind, offset in entries
        )
        return Metadata(found.values, found.lengths, found.largest, tensors)

    def _entry(self, found: Metadata) -> None:
        key, kind = self._string(), self._scalar(4)
        if kind == _STRING:
            found.values[key] = self._string()
        elif kind != _ARRAY:
            found.values[key] = self._scalar(int(kind))
        else:
            kind, count = int(self._scalar(4)), int(self._scalar(10))
            if count > MOST_ITEMS:
                raise ValueError(f"{key!r} claims {count:,} items")
            found.lengths[key] = count
            if kind == _STRING:
                for _ in range(count):
                    self._skip(int(self._scalar(10)))
            else:
                numbers = struct.Struct(f"<{count}{_SCALARS[kind].format[-1]}")
                if count:
                    found.largest[key] = max(numbers.unpack_from(self._data, self._offset))
                self._skip(numbers.size)

    def _tensor(self) -> tuple[str, int, int, int]:
        name = self._string()
        dims = [int(self._scalar(10)) for _ in range(int(self._scalar(4)))]
        kind, offset = int(self._scalar(4)), int(self._scalar(10))
        return name, dims[1] if len(dims) > 1 else 1, kind, offset

    def _scalar(self, kind: int) -> int | float:
        layout = _SCALARS[kind]
        value: int | float = layout.unpack_from(self._data, self._offset)[0]
        self._offset += layout.size
        return value

    def _string(self) -> str:
        size = int(self._scalar(10))
        start = self._offset
        self._skip(size)
        return self._data[start : self._offset].decode("utf-8", "replace")

    def _skip(self, size: int) -> None:
        self._offset += size
        if self._offset > len(self._data):
            raise ValueError("it ends too early")
