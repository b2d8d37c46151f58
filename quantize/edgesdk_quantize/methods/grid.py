"""Search the grid of scales and zero-points that loses least where the inputs are large.

The error of a weight matters in proportion to the mean square of its input channel, its
*importance* (Kawrakow's importance matrix, github.com/ggml-org/llama.cpp/pull/4861). For every
block a family of shrunken ranges is tried; the best scale of each is the weighted least-squares
one, s = sum(h w c) / sum(h c c) with c = code - zero, which leaves
sum(h w w) - sum(h w c)^2 / sum(h c c). The winner is refined with neighbouring zero-points.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import BlockFormat, Float32, PackedMatrix, check_finite, pack
from edgesdk_quantize.formats.coded_scales import code_scales
from edgesdk_quantize.formats.int4_offset import Int4Offset, fit_lines

# Smaller steps than this are treated as zero: their reciprocals would overflow.
_TINY = np.float32(1e-30)
# Which parts of the range below and above zero the ends of a grid may stand for.
_ENDS = (1.0, 0.9, 0.8, 0.7)
# An unsigned step of 1.0 puts the largest magnitude on the lowest code.
_SIGNED = (1.0, 1.14, 1.06, 0.94, 0.88, 0.82, 0.76, 0.7)
_REFINEMENTS = 2
# Blocks that are searched at once: some float32 arrays of [32, 2048] stay within the L2 cache.
_TILE = 2048
# A channel that calibration never saw still counts a little.
_FLOOR = 1e-4


@dataclass(frozen=True)
class Grid:
    """Where the weights of a matrix [N, K] may lie: scale * (code - zero).

    Methods work on transposed weights [columns, N], whose rows are one input channel each.

    Attributes:
        fmt: the format, whose codes run from 0 to `max_code`.
        scales: float32 [blocks, N]; may be negative, never zero.
        zeros: float32 [blocks, N], whole numbers in the range of the codes; of a format with
            offsets any numbers, 8 - offset / scale.
        offsets: what such a format stores; else None.
    """

    fmt: BlockFormat
    scales: Float32
    zeros: Float32
    offsets: PackedMatrix | None = None

    def round(self, column: int, values: Float32) -> Float32:
        """The nearest points of the grid to values [N] (or [n, N] of n columns of one block)."""
        block = column // self.fmt.block
        scale, zero = self.scales[block], self.zeros[block]
        steps = np.rint(values / scale + zero)
        np.clip(steps, 0, self.fmt.max_code, out=steps)
        steps -= zero
        rounded: Float32 = steps * scale
        return rounded


def round_all(grid: Grid, columns: Float32) -> Float32:
    """Weights [K, N] rounded to nearest, each by itself."""
    rounded = np.empty_like(columns)
    for start in range(0, len(columns), grid.fmt.block):
        part = slice(start, start + grid.fmt.block)
        rounded[part] = grid.round(start, columns[part])
    return rounded


def pack_rounded(grid: Grid, rounded: Float32) -> PackedMatrix:
    """Points of the grid [K, N] as a packed matrix [N, K]; the tail of the last block is padded
    with the code of zero."""
    fmt = grid.fmt
    columns, rows = rounded.shape
    blocks = len(grid.scales)
    codes = np.repeat(grid.zeros, fmt.block, axis=0)
    scales = np.repeat(grid.scales, fmt.block, axis=0)[:columns]
    codes[:columns] += rounded / scales
    np.rint(codes, out=codes)
    by_row = np.ascontiguousarray(codes.T.astype(np.uint8)).reshape(rows, blocks, fmt.block)
    zeros = np.ascontiguousarray(np.rint(grid.zeros).T.clip(0, 255).astype(np.uint8))
    by_block = np.ascontiguousarray(grid.scales.T)
    coded = code_scales(by_block) if fmt.has_coded_scales else None
    return PackedMatrix(
        pack(by_row, fmt.bits),
        # To the last bit what the graph will multiply.
        by_block if coded is None else coded.values,
        pack(zeros, fmt.bits) if fmt.has_zero_points else None,
        coded,
        grid.offsets,
    )


def quantize_searched(
    rows: Float32, fmt: BlockFormat, importance: Float32 | None = None
) -> PackedMatrix:
    """Round to the searched grid, each weight by itself.

    Args:
        rows: float32 [N, K].
        importance: float32 [K], mean square of each input channel; None = all alike.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    check_finite(rows)
    grid = search_grid(rows, fmt, importance)
    return pack_rounded(grid, round_all(grid, np.ascontiguousarray(rows.T)))


def search_grid(rows: Float32, fmt: BlockFormat, importance: Float32 | None = None) -> Grid:
    """The grid with the least weighted error of rounding to nearest; see `quantize_searched`."""
    count, columns = rows.shape
    if importance is None:
        importance = np.ones(columns, np.float32)
    floor = max(float(importance.mean()) * _FLOOR, float(_TINY))
    weights = np.maximum(importance, np.float32(floor))
    weights = weights / weights.max()
    blocks = -(-columns // fmt.block)
    scales = np.empty((blocks, count), np.float32)
    zeros = np.empty((blocks, count), np.float32)

    def search(span: slice) -> None:
        tile, tiled = _tile(rows, weights, fmt.block, span)
        found = fit_lines(tile, tiled) if isinstance(fmt, Int4Offset) else _search(tile, tiled, fmt)
        scales[span], zeros[span] = (part.reshape(-1, count) for part in found)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(search, _block_spans(columns, fmt.block, count)):
            pass
    if isinstance(fmt, Int4Offset):
        return _offset_grid(fmt, scales, lowest=zeros)
    if fmt.has_coded_scales:
        scales = np.ascontiguousarray(code_scales(scales.T).values.T)
    return Grid(fmt, scales, zeros)


def _block_spans(columns: int, block: int, rows: int) -> Iterator[slice]:
    """Spans of blocks that are searched at once: enough to keep numpy busy, few enough for a cache.
    A last block that is not full goes alone."""
    whole = columns // block
    step = max(1, _TILE // rows)
    for start in range(0, whole, step):
        yield slice(start, min(start + step, whole))
    if columns % block:
        yield slice(whole, whole + 1)


def _tile(rows: Float32, weights: Float32, block: int, span: slice) -> tuple[Float32, Float32]:
    """The weights of a span of blocks, [block, blocks * N], one block after the other, and the
    importance of their channels in a shape that broadcasts."""
    part = slice(span.start * block, span.stop * block)
    cut, counts = rows[:, part], weights[part]
    blocks = span.stop - span.start
    tile = cut.reshape(len(rows), blocks, -1).transpose(2, 1, 0).reshape(-1, blocks * len(rows))
    # One block's counts are alike for all rows, and numpy spreads them by itself.
    spread = 1 if blocks == 1 else len(rows)
    tiled = np.repeat(counts.reshape(blocks, -1).T, spread, axis=1)
    return np.ascontiguousarray(tile), tiled


def _offset_grid(fmt: Int4Offset, steps: Float32, *, lowest: Float32) -> Grid:
    """The grid of steps and lowest values [blocks, N] as they are stored, in 8 bits."""
    scales = np.ascontiguousarray(code_scales(steps.T).values.T)
    middle = np.float32(1 << (fmt.bits - 1))
    offsets = fmt.pack_offsets(np.ascontiguousarray((lowest + middle * steps).T))
    values = fmt.offset_values(offsets, len(scales)).T
    return Grid(fmt, scales, np.ascontiguousarray(middle - values / scales), offsets)


def _search(tile: Float32, weights: Float32, fmt: BlockFormat) -> tuple[Float32, Float32]:
    best = _GridSearch(tile, weights, fmt)
    ranges = list(_ranges(tile, fmt))
    for step, zero in ranges:
        best.try_candidate(step, zero)
    for _ in range(_REFINEMENTS):
        best.try_candidate(best.step, best.zero)
        if fmt.has_zero_points:
            for shift in (-1, 1):
                top = np.float32(fmt.max_code)
                best.try_candidate(best.step, np.clip(best.zero + np.float32(shift), 0, top))
    best.replace_if_better(*ranges[0])
    return best.step, best.zero


def _ranges(tile: Float32, fmt: BlockFormat) -> Iterator[tuple[Float32, Float32]]:
    """Candidate steps [N] and zero-points [N] of a tile [block, N]; the plain range first."""
    top = fmt.max_code
    if fmt.has_zero_points:
        low, high = np.minimum(tile.min(axis=0), 0), np.maximum(tile.max(axis=0), 0)
        for below in _ENDS:
            for above in _ENDS:
                step = _usable((high * above - low * below) / np.float32(top))
                yield step, np.clip(np.rint(-low * below / step), 0, top).astype(np.float32)
        return
    middle = np.float32(1 << (fmt.bits - 1))
    low, high = tile.min(axis=0), tile.max(axis=0)
    # The largest magnitude lies on code 0, so a positive one asks for a negative step.
    unit = np.where(-low >= high, -low, -high) / middle
    zero = np.full(tile.shape[1], middle, np.float32)
    for factor in _SIGNED:
        for sign in (1.0, -1.0):
            yield _usable(unit * np.float32(sign * factor)), zero


def _usable(step: Float32) -> Float32:
    usable: Float32 = np.where(np.abs(step) > _TINY, step, np.float32(1)).astype(np.float32)
    return usable


class _GridSearch:
    """The best step and zero-point so far for each block of a tile [block, N].

    Works on weights in units of each block's largest, so that no weight can overflow a sum.
    """

    def __init__(self, tile: Float32, weights: Float32, fmt: BlockFormat) -> None:
        self._top = np.float32(fmt.max_code)
        self._unit = _usable(np.abs(tile).max(axis=0))
        self._tile = tile / self._unit
        self._weights = weights
        self._weighted = self._tile * weights
        # What rounding leaves, less sum(h w w), which is the same for all candidates.
        self._error = np.full(tile.shape[1], np.inf, np.float32)
        self._step = np.ones(tile.shape[1], np.float32)
        self.zero = np.zeros(tile.shape[1], np.float32)

    @property
    def step(self) -> Float32:
        return self._step * self._unit

    def try_candidate(self, step: Float32, zero: Float32) -> None:
        """Round with a step, give that rounding its best step, and round once more with it."""
        relative = step / self._unit
        for _ in range(2):
            along, energy = self._sums(relative, zero)
            error = energy * relative * relative - 2 * along * relative
            better = error < self._error
            self._error = np.where(better, error, self._error)
            self._step = np.where(better, relative, self._step)
            self.zero = np.where(better, zero, self.zero)
            fitted = along / np.where(energy > 0, energy, np.float32(1))
            relative = np.where(np.abs(fitted) > _TINY, fitted, relative)

    def replace_if_better(self, step: Float32, zero: Float32) -> None:
        """Take this candidate where its residual is smaller. Sums that nearly cancel each other
        order candidates with tiny errors by chance, so residuals are compared directly."""
        relative = step / self._unit
        worse = self._residual(self._step, self.zero) > self._residual(relative, zero)
        self._step = np.where(worse, relative, self._step)
        self.zero = np.where(worse, zero, self.zero)

    def _residual(self, step: Float32, zero: Float32) -> Float32:
        """The squared error of rounding, float32 [N], without differences of large sums."""
        left = self._codes(step, zero) * step - self._tile
        np.square(left, out=left)
        total: Float32 = (left * self._weights).sum(axis=0)
        return total

    def _codes(self, step: Float32, zero: Float32) -> Float32:
        codes = self._tile / step
        np.rint(codes, out=codes)
        np.clip(codes, -zero, self._top - zero, out=codes)
        return codes

    def _sums(self, step: Float32, zero: Float32) -> tuple[Float32, Float32]:
        codes = self._codes(step, zero)
        along = np.einsum("bn,bn->n", codes, self._weighted)
        np.square(codes, out=codes)
        return along, (codes * self._weights).sum(axis=0)
