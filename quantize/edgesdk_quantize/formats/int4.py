"""Store 4-bit codes, with scales (and zero-points) searched for the least squared error.

Rounding a block's minimum and maximum to the ends of the code range spends codes on outliers.
Here a grid of shrunken ranges and neighbouring zero-points is tried for every block. With codes
c = code - zero_point fixed, the best scale is the least-squares one, s = sum(x c) / sum(c c), and
leaves the error sum(x x) - sum(x c)^2 / sum(c c); so a candidate is judged by two sums alone. The
winner is then rounded again with its own least-squares scale. This is the search of ggml's
`make_qkx2_quants` (github.com/ggml-org/ggml, src/ggml-quants.c), with an integer zero-point in
place of a float minimum.
"""

from __future__ import annotations

from collections.abc import Sequence
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

_LEVELS = 15
_MIDDLE = 8
# Blocks that are searched together: four float32 arrays of [32, 2048] stay within the L2 cache.
_TILE = 2048
_ONE = np.float32(1)
# Smaller steps than this are treated as zero: their reciprocals would overflow.
_TINY = np.float32(1e-30)
# Range factors of the grid, the plain min-max range (1.0) among them.
_FACTORS = (1.0, 1.06, 0.94, 0.88, 0.82, 0.76)
_ZERO_SHIFTS = (0, -1, 1)
# An unsigned step of 1.0 puts the largest magnitude on -8; 8/7 puts it on +7.
_SIGNED_FACTORS = (1.0, 8 / 7, 1.06, 0.94, 0.88, 0.82)
_REFINEMENTS = 1


@dataclass(frozen=True)
class Int4(BlockFormat):
    """4-bit blocks with a 4-bit zero-point each: 5.125 bits a weight at a block of 32."""

    block: int = 32
    name: str = "int4"
    bits: int = 4
    has_zero_points: bool = True
    expected_error: float = 0.08
    rounding: str = "scale and zero-point searched for the least squared error"
    mix_blocks: tuple[int, ...] = (128, 64, 32, 16)
    reads_steps: bool = True

    def quantize(self, rows: Float32) -> PackedMatrix:
        """See `BlockFormat.quantize`."""
        return _quantize(rows, self.block, symmetric=False)

    def requantize(self, rows: Float32, steps: Float32 | None) -> PackedMatrix:
        """See `BlockFormat.requantize`: the known step is searched too, so that a grid with a
        whole zero-point stays as it is."""
        return _quantize(rows, self.block, symmetric=False, steps=steps)

    def dequantize(self, packed: PackedMatrix, *, columns: int) -> Float32:
        """See `BlockFormat.dequantize`."""
        return dequantize(packed, bits=self.bits, columns=columns)


@dataclass(frozen=True)
class Int4Symmetric(BlockFormat):
    """4-bit blocks around a fixed zero-point of 8: 5 bits a weight at a block of 32.

    A scale may be negative, so that either end of a block can use the sixteenth code.
    """

    block: int = 32
    name: str = "int4-symmetric"
    bits: int = 4
    has_zero_points: bool = False
    expected_error: float = 0.08
    rounding: str = "scale and zero-point searched for the least squared error"

    def quantize(self, rows: Float32) -> PackedMatrix:
        """See `BlockFormat.quantize`."""
        return _quantize(rows, self.block, symmetric=True)

    def dequantize(self, packed: PackedMatrix, *, columns: int) -> Float32:
        """See `BlockFormat.dequantize`."""
        return dequantize(packed, bits=self.bits, columns=columns)


def _quantize(
    rows: Float32, block: int, *, symmetric: bool, steps: Float32 | None = None
) -> PackedMatrix:
    blocks = to_blocks(rows, block)
    count, per_row, _ = blocks.shape
    flat = blocks.reshape(-1, block)
    data = np.empty((len(flat), block // 2), np.uint8)
    scales = np.empty(len(flat), np.float32)
    zeros = np.empty(len(flat), np.uint8)
    for start in range(0, len(flat), _TILE):
        part = slice(start, min(start + _TILE, len(flat)))
        # Blocks along the last axis: every operation on them is then one long vector loop.
        tile = np.ascontiguousarray(flat[part].T)
        if symmetric:
            step, zero, codes = _search_symmetric(tile)
        else:
            known = None if steps is None else steps.reshape(-1)[part]
            step, zero, codes = _search_asymmetric(tile, known)
        data[part] = pack(codes.T.astype(np.uint8), 4)
        scales[part], zeros[part] = step, zero
    return PackedMatrix(
        data.reshape(count, per_row, -1),
        scales.reshape(count, per_row),
        None if symmetric else pack(zeros.reshape(count, per_row), 4),
    )


def _search_asymmetric(tile: Float32, steps: Float32 | None) -> tuple[Float32, Float32, Float32]:
    fifteenth = np.float32(1 / _LEVELS)
    low = np.minimum(tile.min(axis=0), 0) * fifteenth
    unit = np.maximum(tile.max(axis=0), 0) * fifteenth - low
    unit = np.where(unit > _TINY, unit, np.float32(1))
    zero = np.clip(np.rint(-low * (_LEVELS / unit)), 0, _LEVELS).astype(np.float32)
    grid = _BlockSearch(tile, unit)
    for shift in _ZERO_SHIFTS:
        shifted = np.clip(zero + np.float32(shift), 0, _LEVELS)
        grid.try_factors(shifted, _FACTORS)
    if steps is not None:
        # A step that is far too small cannot reach the block's ends; it would only overflow.
        factor = np.maximum(steps / unit, np.float32(1 / _LEVELS))
        zero = np.rint(-low * (_LEVELS / (unit * factor)))
        for shift in _ZERO_SHIFTS:
            shifted = np.clip(zero + np.float32(shift), 0, _LEVELS).astype(np.float32)
            grid.try_step(_ONE / factor, shifted)
    return grid.finish()


def _search_symmetric(tile: Float32) -> tuple[Float32, Float32, Float32]:
    unit = np.maximum(tile.max(axis=0), -tile.min(axis=0)) / np.float32(_MIDDLE)
    unit = np.where(unit > _TINY, unit, np.float32(1))
    grid = _BlockSearch(tile, unit)
    zero = np.full(tile.shape[1], _MIDDLE, np.float32)
    for sign in (1.0, -1.0):
        grid.try_factors(zero, [sign * factor for factor in _SIGNED_FACTORS])
    return grid.finish()


class _BlockSearch:
    """The best scale and zero-point found so far for each block of a tile [block, n].

    Works on weights in units of the first step, so that no weight can overflow a sum.
    """

    def __init__(self, tile: Float32, unit: Float32) -> None:
        blocks = tile.shape[1]
        self._unit = unit
        self._tile = tile / unit
        self._codes = np.empty_like(tile)
        self._product = np.empty_like(tile)
        self._gain = np.zeros(blocks, np.float32)
        self._step = np.ones(blocks, np.float32)
        self._zero = np.full(blocks, _MIDDLE, np.float32)

    def try_factors(self, zero: Float32, factors: Sequence[float]) -> None:
        """Judge steps of each of `factors` units with zero-points [n]."""
        for factor in factors:
            self.try_step(np.float32(1 / factor), zero)

    def finish(self) -> tuple[Float32, Float32, Float32]:
        """Scales [n], zero-points [n] and codes [block, n] of the winners, refined."""
        for _ in range(_REFINEMENTS):
            self.try_step(_ONE / self._step, self._zero.copy())
        self._round(_ONE / self._step, self._zero)
        return self._step * self._unit, self._zero, self._codes + self._zero

    def _round(self, inverse: Float32 | np.float32, zero: Float32) -> None:
        codes = self._codes
        np.multiply(self._tile, inverse, out=codes)
        np.rint(codes, out=codes)
        np.maximum(codes, -zero, out=codes)
        np.minimum(codes, _LEVELS - zero, out=codes)

    def try_step(self, inverse: Float32 | np.float32, zero: Float32) -> None:
        """Judge a step of 1 / `inverse` units, one for all blocks or one each [n]."""
        self._round(inverse, zero)
        np.multiply(self._codes, self._tile, out=self._product)
        along = self._product.sum(axis=0)
        np.multiply(self._codes, self._codes, out=self._product)
        energy = np.maximum(self._product.sum(axis=0), np.float32(1))
        gain = along * along / energy
        better = gain > self._gain
        self._gain = np.where(better, gain, self._gain)
        # The gain stays what this rounding achieves with its own least-squares step; the codes
        # are rounded again with that step only if doing so wins.
        self._step = np.where(better, along / energy, self._step)
        self._zero = np.where(better, zero, self._zero)
