"""Store 8-bit codes, rounded to nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import (
    BlockFormat,
    Float32,
    PackedMatrix,
    dequantize,
    to_blocks,
)

_LEVELS = np.float32(255)
_LARGEST = np.float32(127)
_MIDDLE = np.float32(128)
# Smaller steps than this are treated as zero: their reciprocals would overflow.
_TINY = np.float32(1e-30)


@dataclass(frozen=True)
class Int8(BlockFormat):
    """8-bit blocks with an 8-bit zero-point each: 9.25 bits a weight at a block of 32.

    A zero-point lets a lopsided block use all codes, at no cost in speed.
    """

    block: int = 32
    name: str = "int8"
    bits: int = 8
    has_zero_points: bool = True
    expected_error: float = 0.015
    holds_embedding: bool = True
    mix_blocks: tuple[int, ...] = (128, 64, 32)

    def quantize(self, rows: Float32) -> PackedMatrix:
        """See `BlockFormat.quantize`."""
        blocks = to_blocks(rows, self.block)
        low = np.minimum(blocks.min(axis=-1), 0) / _LEVELS
        scales = np.maximum(blocks.max(axis=-1), 0) / _LEVELS - low
        scales = np.where(scales > _TINY, scales, np.float32(1))
        zeros = np.rint(-low * (_LEVELS / scales))
        codes = np.rint(blocks / scales[..., None])
        codes += zeros[..., None]
        codes = np.clip(codes, 0, _LEVELS)
        return PackedMatrix(codes.astype(np.uint8), scales, zeros.astype(np.uint8))

    def dequantize(self, packed: PackedMatrix, *, columns: int) -> Float32:
        """See `BlockFormat.dequantize`."""
        return dequantize(packed, bits=self.bits, columns=columns)


@dataclass(frozen=True)
class Int8Symmetric(BlockFormat):
    """8-bit blocks around a fixed zero-point of 128: 9 bits a weight at a block of 32.

    Its grid is that of ggml's Q8_0, the usual format of embeddings in GGUF files, which it
    therefore stores without a loss.
    """

    block: int = 32
    name: str = "int8-symmetric"
    bits: int = 8
    has_zero_points: bool = False
    expected_error: float = 0.015
    holds_embedding: bool = True

    def quantize(self, rows: Float32) -> PackedMatrix:
        """See `BlockFormat.quantize`."""
        blocks = to_blocks(rows, self.block)
        scales = np.abs(blocks).max(axis=-1) / _LARGEST
        scales = np.where(scales > _TINY, scales, np.float32(1))
        codes = np.rint(blocks / scales[..., None]) + _MIDDLE
        return PackedMatrix(codes.astype(np.uint8), scales, None)

    def dequantize(self, packed: PackedMatrix, *, columns: int) -> Float32:
        """See `BlockFormat.dequantize`."""
        return dequantize(packed, bits=self.bits, columns=columns)
