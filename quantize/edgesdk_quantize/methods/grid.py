"""The grid that a block format rounds to: a scale and a zero-point for each block of weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import BlockFormat, Float32, Packed, pack
from edgesdk_quantize.formats.coded import code_scales


@dataclass(frozen=True)
class Grid:
    """Where the weights of a matrix [N, K] may lie: scale * (code - zero).

    Methods work on transposed weights [columns, N], whose rows are one input channel each.

    Attributes:
        form: the format, whose codes run from 0 to 2 ** bits - 1.
        scales: float32 [blocks, N]; may be negative, never zero.
        zeros: float32 [blocks, N], whole numbers in the range of the codes; of a format with
            offsets any numbers, 8 - offset / scale.
        offsets: what such a format stores; else None.
    """

    form: BlockFormat
    scales: Float32
    zeros: Float32
    offsets: Packed | None = None

    def round(self, column: int, values: Float32) -> Float32:
        """The nearest points of the grid to values [N] (or [n, N] of n columns of one block)."""
        block = column // self.form.block
        scale, zero = self.scales[block], self.zeros[block]
        steps = np.rint(values / scale + zero)
        np.clip(steps, 0, largest_code(self.form), out=steps)
        steps -= zero
        rounded: Float32 = steps * scale
        return rounded


def round_all(grid: Grid, columns: Float32) -> Float32:
    """Weights [K, N] rounded to nearest, each by itself."""
    rounded = np.empty_like(columns)
    for start in range(0, len(columns), grid.form.block):
        part = slice(start, start + grid.form.block)
        rounded[part] = grid.round(start, columns[part])
    return rounded


def pack_rounded(grid: Grid, rounded: Float32) -> Packed:
    """Points of the grid [K, N] as a packed matrix [N, K]; the tail of the last block is padded
    with the code of zero."""
    form = grid.form
    columns, rows = rounded.shape
    blocks = len(grid.scales)
    codes = np.repeat(grid.zeros, form.block, axis=0)
    scales = np.repeat(grid.scales, form.block, axis=0)[:columns]
    codes[:columns] += rounded / scales
    np.rint(codes, out=codes)
    by_row = np.ascontiguousarray(codes.T.astype(np.uint8)).reshape(rows, blocks, form.block)
    zeros = np.ascontiguousarray(np.rint(grid.zeros).T.clip(0, 255).astype(np.uint8))
    by_block = np.ascontiguousarray(grid.scales.T)
    coded = code_scales(by_block) if form.has_coded_scales else None
    return Packed(
        pack(by_row, form.bits),
        # To the last bit what the graph will multiply.
        by_block if coded is None else coded.values,
        pack(zeros, form.bits) if form.has_zero_points else None,
        coded,
        grid.offsets,
    )


def largest_code(form: BlockFormat) -> int:
    """2 ** bits - 1."""
    return (1 << form.bits) - 1
