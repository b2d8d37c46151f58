"""Tensors of a GGUF file, dequantized a few rows at a time by the gguf package, or block by block
as they are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from edgesdk_quantize.formats import BlockFormat, PackedMatrix, preserved_blocks
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from edgesdk.errors import CheckpointError
from edgesdk_export.checkpoint.checkpoint import FileRegion
from edgesdk_export.checkpoint.gguf_header import TensorInfo, read_gguf_header
from edgesdk_export.weights import Float32


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
        DamagedCheckpoint, CheckpointError: see `read_gguf_header`.
    """
    header = read_gguf_header(path)
    return dict(header.metadata), {info.name: _tensor(path, info) for info in header.tensors}


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
