"""4-bit blocks with a real offset, the grids of ggml's Q4_1 and Q4_K, on kernels that have none.

    weight = scale * (code - 8) + offset

MatMulNBits takes real zero-points only in a kernel that is 20 times slower. But what offsets add to
a product is itself a product: of the sums of the input over each block, with the offsets,

    x W^T = x (scale * (code - 8))^T + block_sums(x) offsets^T

which is 32 times as narrow. So the offsets are a matrix of their own, in 8 bits, that the graph
multiplies with the block sums. The search is that of ggml's `make_qkx2_quants`
(github.com/ggml-org/ggml, src/ggml-quants.c): for ranges of several widths, codes and the weighted
least-squares line through them by turns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import (
    BlockFormat,
    Float32,
    PackedMatrix,
    dequantize,
    pack,
    to_blocks,
)
from edgesdk_quantize.formats.coded_scales import CodedScales, code_scales
from edgesdk_quantize.formats.int4 import Int4
from edgesdk_quantize.formats.int8 import Int8Symmetric

_TOP = np.float32(15)
_MIDDLE = np.float32(8)
# A range of (highest - lowest) is cut into as many steps.
_STEPS = tuple(np.float32(15 + extra / 4) for extra in range(-4, 6))
_ROUNDS = 3
# Smaller steps than this are treated as zero: their reciprocals would overflow.
_TINY = np.float32(1e-30)
# In units of a block's largest weight.
_FLAT = np.float32(1e-6)
_OFFSET_BLOCKS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Int4Offset(BlockFormat):
    """4-bit codes, an 8-bit scale and an 8-bit offset for each block: 4.56 bits a weight in rows of
    1,536 at a block of 32. The block must divide the columns.
    """

    block: int = 32
    name: str = "int4-offset"
    bits: int = 4
    has_zero_points: bool = False
    has_coded_scales: bool = True
    has_offsets: bool = True
    expected_error: float = 0.08
    rounding: str = "scale and zero-point searched for the least squared error"
    mix_blocks: tuple[int, ...] = (128, 64, 32, 16)

    def quantize(self, rows: Float32) -> PackedMatrix:
        """See `BlockFormat.quantize`.

        Raises:
            ValueError: also, where the block does not divide the columns.
        """
        blocks = to_blocks(rows, self.block)
        if blocks.shape[1] * self.block != rows.shape[1]:
            raise ValueError(
                f"rows of {rows.shape[1]:,} values cannot be stored as {self.name}, whose blocks "
                f"are of {self.block}"
            )
        equal = np.ones((self.block, 1), np.float32)
        fitted = [fit_lines(np.ascontiguousarray(tile.T), equal) for tile in blocks.swapaxes(0, 1)]
        steps, lows = (np.stack(part, axis=1) for part in zip(*fitted, strict=True))
        scales = code_scales(steps)
        offsets = self.pack_offsets(lows + _MIDDLE * steps)
        values = self.offset_values(offsets, blocks.shape[1])
        codes = np.rint((blocks - values[..., None]) / scales.values[..., None])
        codes = np.clip(codes + _MIDDLE, 0, _TOP).astype(np.uint8)
        return PackedMatrix(pack(codes, self.bits), scales.values, None, scales, offsets)

    def dequantize(self, packed: PackedMatrix, *, columns: int) -> Float32:
        """See `BlockFormat.dequantize`."""
        assert packed.offsets is not None
        weights = dequantize(packed, bits=self.bits, columns=columns)
        values = self.offset_values(packed.offsets, packed.data.shape[1])
        weights += np.repeat(values, self.block, axis=1)
        return weights

    def for_columns(self, columns: int) -> BlockFormat:
        """See `BlockFormat.for_columns`."""
        if columns % self.block:
            return CodedScales(Int4(self.block)).for_columns(columns)
        return self

    def stored_bits(self, rows: int, columns: int) -> int:
        """See `BlockFormat.stored_bits`."""
        blocks = -(-columns // self.block)
        return super().stored_bits(rows, columns) + rows * self.offset_format(blocks).stored_bits(
            1, blocks
        )

    def offset_format(self, blocks: int) -> BlockFormat:
        """How rows of so many offsets are stored: in the blocks that take the fewest bits."""

        def bits(block: int) -> int:
            return -(-blocks // block) * (block * 8 + 8)

        return CodedScales(Int8Symmetric(block=min(_OFFSET_BLOCKS, key=bits)))

    def pack_offsets(self, offsets: Float32) -> PackedMatrix:
        """Offsets float32 [N, blocks] as a matrix in 8 bits."""
        return self.offset_format(offsets.shape[1]).quantize(offsets)

    def offset_values(self, offsets: PackedMatrix, blocks: int) -> Float32:
        """The float32 [N, blocks] that packed offsets stand for."""
        return self.offset_format(blocks).dequantize(offsets, columns=blocks)


def fit_lines(tile: Float32, weights: Float32) -> tuple[Float32, Float32]:
    """Steps [N] and lowest values [N] of the 16 levels that fit blocks best.

    Args:
        tile: float32 [block, N], a block of weights in each column.
        weights: float32 [block, 1] or [block, N], positive: what a squared error counts.
    """
    unit = np.abs(tile).max(axis=0)
    unit = np.where(unit > _TINY, unit, np.float32(1)).astype(np.float32)
    scaled = tile / unit
    total = weights.sum(axis=0)
    weighted = scaled * weights
    mean = weighted.sum(axis=0) / total
    lowest, widest = scaled.min(axis=0), scaled.max(axis=0) - scaled.min(axis=0)
    # A block of one value needs no step, and its row none that is larger for it.
    flat = widest < _FLAT
    widest = np.where(flat, _FLAT, widest)
    best = np.full(tile.shape[1], np.inf, np.float32)
    best_step, best_low = widest / _TOP, lowest
    for steps in _STEPS:
        step, low = widest / steps, lowest
        for _ in range(_ROUNDS):
            codes = np.clip(np.rint((scaled - low) / step), 0, _TOP)
            middle = (codes * weights).sum(axis=0) / total
            codes -= middle
            spread = (np.square(codes) * weights).sum(axis=0)
            along = np.einsum("bn,bn->n", codes, weighted)
            fitted = along / np.where(spread > 0, spread, np.float32(1))
            step = np.where(fitted > np.float32(1e-9), fitted, step)
            low = mean - middle * step
            left = codes * step - (scaled - mean)
            error = (np.square(left) * weights).sum(axis=0)
            better = error < best
            best = np.where(better, error, best)
            best_step, best_low = np.where(better, step, best_step), np.where(better, low, best_low)
    step, low = np.where(flat, 0, best_step), np.where(flat, lowest, best_low)
    return (step * unit).astype(np.float32), (low * unit).astype(np.float32)
