"""Tensors of a GGUF file, dequantized a few rows at a time by the gguf package, or block by block
as they are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from edgesdk_quantize.formats import BlockFormat, PackedMatrix, preserved_blocks
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from edgesdk.errors import CheckpointError, DamagedCheckpoint
from edgesdk.system.gguf_header import (
    DamagedGguf,
    GgufArray,
    GgufHeader,
    GgufTensorEntry,
    NotGguf,
    Scalar,
    UnsupportedGguf,
    quoted,
    read_gguf_header,
)
from edgesdk_export.checkpoint.checkpoint import FileRegion, refuse_pointer
from edgesdk_export.weights import Float32

_AGAIN = "Download the checkpoint again."


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
class GgufContents:
    """What a header says: metadata by key (lists for arrays), and tensors in order."""

    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]


def read_gguf_contents(path: Path) -> GgufContents:
    """Read the header of a checkpoint, and check that its tensors lie in the file.

    Raises:
        DamagedCheckpoint: the file is no GGUF, is cut, or its header lies.
        CheckpointError: it is big-endian, of an unknown version or split over several files.
    """
    if path.is_file():
        refuse_pointer(path)
    try:
        header = read_gguf_header(path)
        metadata = _metadata(header)
        if metadata.get("split.count", 1) not in (0, 1):
            raise CheckpointError(
                f"{path} is one part of a model that is split over several files.",
                hint="Join the parts first: llama-gguf-split --merge FIRST_PART OUT.gguf.",
            )
        return GgufContents(metadata, _placed(header))
    except NotGguf:
        raise DamagedCheckpoint(f"{path} is not a GGUF file.", hint=_AGAIN) from None
    except UnsupportedGguf as error:
        raise CheckpointError(
            f"{path}: {error}.", hint="Convert the model again with a current llama.cpp."
        ) from None
    except DamagedGguf as error:
        raise DamagedCheckpoint(f"{path}: {error}.", hint=_AGAIN) from None


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file; a `LazyTensor`."""

    region: FileRegion
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    row_bytes: int

    @property
    def dtype(self) -> str:
        """ggml's name of the type: "Q4_K", "F32"."""
        return self.type.name

    def rows(self, start: int, stop: int) -> Float32:
        """Rows [start, stop) as float32: the values that ggml's dequantizer gives. A vector is
        read from its first value on, whatever its type: blocks do not begin at every value.

        Raises:
            CheckpointError: the gguf package cannot dequantize this type.
            DamagedCheckpoint: the file was cut since it was opened.
        """
        if start == stop:
            return np.empty((0, *self.shape[1:]), dtype=np.float32)
        if len(self.shape) == 1:
            return self._decode(self.region.read(0, self.row_bytes))[0, start:stop]
        per_row = math.prod(self.shape[1:-1]) * self.row_bytes
        raw = self.region.read(start * per_row, stop * per_row)
        return self._decode(raw).reshape(stop - start, *self.shape[1:])

    def _decode(self, raw: np.ndarray[Any, np.dtype[np.uint8]]) -> Float32:
        lines = raw.reshape(-1, self.row_bytes)
        if self.type == GGMLQuantizationType.F64:
            return lines.view("<f8").astype(np.float32)
        if not _can_dequantize(self.type):
            raise CheckpointError(
                f"{self.region.path}: tensor '{self.region.tensor}' is stored as {self.dtype}, "
                "which cannot be dequantized.",
                hint="Use a GGUF in F16, BF16, Q8_0 or a K-quant.",
            )
        values: Float32 = dequantize(lines, self.type)
        return values


@dataclass(frozen=True)
class GgufBlockTensor(GgufTensor):
    """A matrix in one of ggml's block types; a `BlockTensor` and a `PackedTensor`."""

    def preserved_format(self, fmt: BlockFormat) -> BlockFormat | None:
        """See `BlockTensor.preserved_format`."""
        return preserved_blocks.preserved_format(self.dtype, fmt)

    def blocks(self, fmt: BlockFormat, start: int, stop: int) -> PackedMatrix:
        """See `BlockTensor.blocks`."""
        return preserved_blocks.preserve_blocks(self.dtype, self.packed(start, stop), fmt)

    def steps(self, block: int, start: int, stop: int) -> Float32 | None:
        """See `BlockTensor.steps`."""
        return preserved_blocks.grid_steps(self.dtype, self.packed(start, stop), block)

    def packed(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """See `PackedTensor.packed`."""
        raw = self.region.read(start * self.row_bytes, stop * self.row_bytes)
        return raw.reshape(stop - start, self.row_bytes)


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """Metadata by key, and tensors by name.

    Raises:
        DamagedCheckpoint, CheckpointError: see `read_gguf_contents`.
    """
    contents = read_gguf_contents(path)
    tensors = {info.name: _tensor(path, info) for info in contents.tensors}
    return dict(contents.metadata), tensors


def _tensor(path: Path, info: TensorInfo) -> GgufTensor:
    rounded = GGML_QUANT_SIZES[info.type][0] > 1 and len(info.shape) == 2
    kind = GgufBlockTensor if rounded else GgufTensor
    return kind(FileRegion(path, info.offset, info.name), info.shape, info.type, info.row_bytes)


@cache
def _can_dequantize(kind: GGMLQuantizationType) -> bool:
    block_bytes = GGML_QUANT_SIZES[kind][1]
    try:
        dequantize(np.zeros((1, block_bytes), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _metadata(header: GgufHeader) -> dict[str, Any]:
    """The metadata with arrays as lists; its texts must be UTF-8."""
    found: dict[str, Any] = {}
    for key, value in header.metadata.items():
        where = "a metadata key"
        try:
            key.encode()
            where = f"the value of {quoted(key)}"
            found[key] = _plain(value)
        except UnicodeError:
            raise DamagedGguf(f"{where} is not UTF-8") from None
    return found


def _plain(value: Scalar | GgufArray) -> Any:
    if isinstance(value, GgufArray):
        numbers = None if value.is_texts else value.numbers().tolist()
        return [text.decode() for text in value.texts()] if numbers is None else numbers
    if isinstance(value, str):
        value.encode()
    return value


def _placed(header: GgufHeader) -> tuple[TensorInfo, ...]:
    placed = [_info(entry, header) for entry in header.tensors]
    reached = header.data_start
    for info in sorted(placed, key=lambda info: info.offset):
        if info.offset < reached:
            raise DamagedGguf(f"tensor {quoted(info.name)} overlaps another one")
        reached = info.offset + info.size
    return tuple(placed)


def _info(entry: GgufTensorEntry, header: GgufHeader) -> TensorInfo:
    name = quoted(entry.name)
    try:
        kind = GGMLQuantizationType(entry.type)
    except ValueError:
        raise DamagedGguf(f"tensor {name} has the unknown type {entry.type}") from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if entry.shape[-1] % block:
        raise DamagedGguf(
            f"tensor {name} has rows of {entry.shape[-1]:,} values; {kind.name} stores"
            f" them in blocks of {block}"
        )
    row_bytes = entry.shape[-1] // block * block_bytes
    info = TensorInfo(entry.name, entry.shape, kind, header.data_start + entry.offset, row_bytes)
    if entry.offset % header.alignment or info.offset + info.size > header.file_size:
        raise DamagedGguf(
            f"tensor {name} would lie at bytes {info.offset:,} to"
            f" {info.offset + info.size:,}; the file has {header.file_size:,}"
        )
    return info
