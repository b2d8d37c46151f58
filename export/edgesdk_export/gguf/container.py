"""Write the GGUF container: all that stands before the data is known before the first weight is.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian. Sizes
follow from shapes and types, so that the header is written once and the data streams behind it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats.ggml import GgmlFormat
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUF_VERSION, GGUFValueType

from edgesdk.errors import ExportError
from edgesdk_export.resume import SectionJournal

# A float is written as FLOAT32, an integer as UINT32; arrays of integers are INT32.
Value: TypeAlias = (
    bool | int | float | str | Sequence[str] | npt.NDArray[np.int32] | npt.NDArray[np.float32]
)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ITEMS = {np.dtype("<i4"): GGUFValueType.INT32, np.dtype("<f4"): GGUFValueType.FLOAT32}


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that is yet to be written.

    Attributes:
        shape: rows first; its last axis is a multiple of the format's block.
        chunks: gives its bytes, in order, when its turn comes.
    """

    name: str
    shape: tuple[int, ...]
    format: GgmlFormat
    chunks: Callable[[], Iterable[npt.NDArray[Any]]]

    @property
    def size(self) -> int:
        """Bytes in the file, padding left out."""
        return math.prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


def write_container(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorPlan],
    *,
    written: Callable[[str], None],
    journal: SectionJournal | None = None,
) -> None:
    """Write a file; metadata and tensors keep their order. `written` is called after each tensor.

    `journal` is of the file, where an earlier call with the same arguments may have been killed:
    tensors that it names are neither made nor reported again.

    Raises:
        ExportError: a tensor's chunks are not as many bytes as its shape and format say.
    """
    with path.open("wb") if journal is None else journal.open(path) as file:
        finished = {} if journal is None else journal.sections
        if not finished:
            file.write(_header(metadata, tensors))
        for tensor in tensors:
            if tensor.name in finished:
                continue
            _pad(file)
            count = 0
            for chunk in tensor.chunks():
                count += file.write(np.ascontiguousarray(chunk).data)
            if count != tensor.size:
                raise ExportError(
                    f"Tensor {tensor.name} came out as {count:,} bytes; {tensor.size:,} are due."
                )
            if journal is not None:
                journal.finish(tensor.name, file, None)
            written(tensor.name)
        _pad(file)


def _header(metadata: Mapping[str, Value], tensors: Sequence[TensorPlan]) -> bytes:
    parts = [b"GGUF", _U32.pack(GGUF_VERSION), _U64.pack(len(tensors)), _U64.pack(len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), *_typed(value)]
    offset = 0
    for tensor in tensors:
        parts += [_string(tensor.name), _U32.pack(len(tensor.shape))]
        parts += [_U64.pack(size) for size in reversed(tensor.shape)]
        parts += [_U32.pack(tensor.format.type_id), _U64.pack(offset)]
        offset += _aligned(tensor.size)
    return b"".join(parts)


def _typed(value: Value) -> list[bytes]:
    if isinstance(value, bool):
        return [_U32.pack(GGUFValueType.BOOL), struct.pack("<?", value)]
    if isinstance(value, int):
        return [_U32.pack(GGUFValueType.UINT32), _U32.pack(value)]
    if isinstance(value, float):
        return [_U32.pack(GGUFValueType.FLOAT32), struct.pack("<f", value)]
    if isinstance(value, str):
        return [_U32.pack(GGUFValueType.STRING), _string(value)]
    head = [_U32.pack(GGUFValueType.ARRAY)]
    if isinstance(value, np.ndarray):
        item = _ITEMS[value.dtype]
        return [*head, _U32.pack(item), _U64.pack(len(value)), value.tobytes()]
    head += [_U32.pack(GGUFValueType.STRING), _U64.pack(len(value))]
    return head + [_string(item) for item in value]


def _string(text: str) -> bytes:
    raw = text.encode()
    return _U64.pack(len(raw)) + raw


def _aligned(size: int) -> int:
    return -(-size // GGUF_DEFAULT_ALIGNMENT) * GGUF_DEFAULT_ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % GGUF_DEFAULT_ALIGNMENT))
