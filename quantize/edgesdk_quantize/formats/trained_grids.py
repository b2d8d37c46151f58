"""Grids whose scales are trained, for the formats that quantization-aware training knows.

In each of them a block of a row [N, K] is

    weight = scale * (code - zero) + offset

with whole codes. A training step reads the grid that would be stored (`stored`), and a trained grid
becomes the format's bytes without a second search (`pack_blocks`, `pack_ggml`): what is stored is
what was trained, to the last bit. ggml's Q4_0 and Q4_K are such formats too (layouts: see
`formats.ggml`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgesdk_quantize.formats import ggml
from edgesdk_quantize.formats.blocks import BlockFormat, Float32, PackedMatrix, UInt8, pack, unpack
from edgesdk_quantize.formats.coded_scales import code_scales
from edgesdk_quantize.formats.ggml import GgmlFormat
from edgesdk_quantize.formats.int4_offset import Int4Offset

TrainedFormat: TypeAlias = BlockFormat | GgmlFormat

# A super-block of Q4_K: 8 groups of 32 weights, whose scales and minima have 6 bits.
_GROUP, _GROUPS = 32, 8
_TOP_SCALE = np.float32(63)
# Smaller units than this are treated as zero: their reciprocals would overflow.
_TINY = np.float32(1e-30)
_LARGEST_HALF = np.float32(65504)


@dataclass(frozen=True)
class BlockGrid:
    """Where the weights of a matrix [N, K] may lie.

    Attributes:
        scales: float32 [N, blocks].
        zeros: float32 [N, blocks], whole numbers.
        offsets: float32 [N, blocks]; None for formats without.
    """

    scales: Float32
    zeros: Float32
    offsets: Float32 | None = None


def is_trainable(fmt: object) -> bool:
    """Whether the scales of a format can be trained."""
    return isinstance(fmt, BlockFormat) or fmt in (ggml.Q4_0, ggml.Q4_K)


def group_size(fmt: TrainedFormat) -> int:
    """How many weights share a scale."""
    return _GROUP if isinstance(fmt, GgmlFormat) else fmt.block


def max_code(fmt: TrainedFormat) -> int:
    """Codes run from 0 to this one."""
    return 15 if isinstance(fmt, GgmlFormat) else fmt.max_code


def first_grid(fmt: TrainedFormat, rows: Float32) -> BlockGrid:
    """The grid that the format itself finds for float32 [N, K], each block by itself.

    Raises:
        ValueError: a weight is NaN or infinite, or the block does not divide K where it has to.
        MissingExtra: a type of ggml's, and llama-cpp-python is not installed.
    """
    if isinstance(fmt, GgmlFormat):
        return _ggml_grid(fmt, fmt.quantize(rows))
    return packed_grid(fmt, fmt.quantize(rows))


def packed_grid(fmt: BlockFormat, packed: PackedMatrix) -> BlockGrid:
    """The grid of a quantized matrix."""
    blocks = packed.scales.shape[1]
    zeros = (
        np.full(packed.scales.shape, 1 << (fmt.bits - 1), np.float32)
        if packed.zero_points is None
        else unpack(packed.zero_points, fmt.bits)[:, :blocks].astype(np.float32)
    )
    offsets = None
    if isinstance(fmt, Int4Offset):
        assert packed.offsets is not None
        offsets = fmt.offset_values(packed.offsets, blocks)
    return BlockGrid(packed.scales, zeros, offsets)


def stored(fmt: TrainedFormat, grid: BlockGrid) -> BlockGrid:
    """The grid that would be stored for one with any scales and offsets: the nearest one."""
    if fmt == ggml.Q4_0:
        return replace(grid, scales=_halves(grid.scales).astype(np.float32))
    if fmt == ggml.Q4_K:
        assert grid.offsets is not None
        scales, minima = _k_values(grid.scales), _k_values(-grid.offsets)
        return BlockGrid(scales.values, grid.zeros, -minima.values)
    assert isinstance(fmt, BlockFormat)
    scales_of_blocks = code_scales(grid.scales).values if fmt.has_coded_scales else grid.scales
    offsets = grid.offsets
    if isinstance(fmt, Int4Offset):
        assert offsets is not None
        offsets = fmt.offset_values(fmt.pack_offsets(offsets), offsets.shape[1])
    return BlockGrid(scales_of_blocks, grid.zeros, offsets)


def pack_blocks(fmt: BlockFormat, grid: BlockGrid, codes: UInt8) -> PackedMatrix:
    """The matrix of codes [N, blocks, block] on the grid that is stored for `grid`."""
    coded = code_scales(grid.scales) if fmt.has_coded_scales else None
    offsets = None
    if isinstance(fmt, Int4Offset):
        assert grid.offsets is not None
        offsets = fmt.pack_offsets(grid.offsets)
    return PackedMatrix(
        pack(codes, fmt.bits),
        grid.scales if coded is None else coded.values,
        pack(grid.zeros.astype(np.uint8), fmt.bits) if fmt.has_zero_points else None,
        coded,
        offsets,
    )


def pack_ggml(fmt: GgmlFormat, grid: BlockGrid, codes: UInt8) -> UInt8:
    """Rows, uint8 [N, bytes], of codes [N, groups, 32] on the grid that is stored for `grid`."""
    count = len(codes)
    if fmt == ggml.Q4_0:
        scales = _halves(grid.scales)[..., None].view(np.uint8)
        fields = [scales.reshape(*codes.shape[:2], 2), codes[..., :16] | codes[..., 16:] << 4]
        return np.concatenate(fields, axis=-1).reshape(count, -1)
    assert grid.offsets is not None
    scales_of_groups, minima = _k_values(grid.scales), _k_values(-grid.offsets)
    units = np.stack([scales_of_groups.units, minima.units], axis=-1).view(np.uint8)
    # Of two groups of 32, the first is in the low halves and the second in the high ones.
    pairs = codes.reshape(count, -1, _GROUPS // 2, 2, _GROUP)
    packed = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(count, pairs.shape[1], -1)
    fields = [units, _six_bits(scales_of_groups.codes, minima.codes), packed]
    return np.concatenate(fields, axis=-1).reshape(count, -1)


def _ggml_grid(fmt: GgmlFormat, raw: UInt8) -> BlockGrid:
    blocks = raw.reshape(len(raw), -1, fmt.block_bytes)
    units = blocks[..., : 2 if fmt == ggml.Q4_0 else 4].copy().view("<f2").astype(np.float32)
    if fmt == ggml.Q4_0:
        scales = units[..., 0]
        return BlockGrid(scales, np.full(scales.shape, 8, np.float32))
    low, middle, shared = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    codes = np.concatenate([low & 63, (shared & 15) | low >> 6 << 4], axis=-1)
    minima = np.concatenate([middle & 63, shared >> 4 | middle >> 6 << 4], axis=-1)
    scales = (units[..., :1] * codes).reshape(len(raw), -1)
    offsets = -(units[..., 1:] * minima).reshape(len(raw), -1)
    return BlockGrid(scales, np.zeros(scales.shape, np.float32), offsets)


@dataclass(frozen=True)
class _SixBits:
    """Scales or minima of Q4_K: codes uint8 [N, super-blocks, 8] times units float16 [N,
    super-blocks]."""

    codes: UInt8
    units: npt.NDArray[np.float16]

    @property
    def values(self) -> Float32:
        """float32 [N, groups]."""
        products = self.codes * self.units.astype(np.float32)[..., None]
        return products.reshape(len(self.codes), -1)


def _k_values(values: Float32) -> _SixBits:
    """The nearest codes of values [N, groups] that are not negative, as ggml stores them."""
    blocks = np.maximum(values, 0).reshape(len(values), -1, _GROUPS)
    units = _halves(blocks.max(axis=-1) / _TOP_SCALE)
    as_read = units.astype(np.float32)[..., None]
    codes = np.rint(blocks / np.where(as_read > _TINY, as_read, np.float32(1)))
    return _SixBits(np.clip(codes, 0, _TOP_SCALE).astype(np.uint8), units)


def _six_bits(scales: UInt8, minima: UInt8) -> UInt8:
    """12 bytes of 8 scales and 8 minima: the inverse of `get_scale_min_k4` of ggml's
    src/ggml-quants.c."""
    first, later = scales[..., :4], scales[..., 4:]
    first_minima, later_minima = minima[..., :4], minima[..., 4:]
    return np.concatenate(
        [
            first | later >> 4 << 6,
            first_minima | later_minima >> 4 << 6,
            (later & 15) | (later_minima & 15) << 4,
        ],
        axis=-1,
    )


def _halves(values: Float32) -> npt.NDArray[np.float16]:
    return np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype("<f2")
