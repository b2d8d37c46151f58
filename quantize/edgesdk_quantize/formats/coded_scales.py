"""Store the scales of a block format in 8 bits: whole multiples of one float32 unit a row.

A float32 scale costs a block of 32 weights a whole bit each; what it says beyond 8 bits is lost in
the rounding of the weights, as long as they are rounded to the scale that is stored. The kernels
want float32 scales: a graph multiplies the codes with the unit, and onnxruntime folds that when
it loads the model. (The idea is that of ggml's K-quants, github.com/ggml-org/llama.cpp/pull/1684,
and of QLoRA's double quantization, Dettmers et al., 2023, arXiv:2305.14314.)
"""

from __future__ import annotations

import dataclasses

import numpy as np

from edgesdk_quantize.formats.blocks import (
    BlockFormat,
    Float32,
    PackedMatrix,
    ScaleCodes,
    pack,
    to_blocks,
    unpack,
)

_LARGEST = np.float32(255)
# Smaller units than this are treated as zero: their reciprocals would overflow.
_TINY = np.float32(1e-30)


@dataclasses.dataclass(frozen=True)
class CodedScales(BlockFormat):
    """Another format with its scales in 8 bits: 4.375 bits a weight for `Int4` at a block of 32,
    and 32 bits more for each row. The other format's scales must be positive.
    """

    fmt: BlockFormat
    has_coded_scales: bool = True

    @property
    def name(self) -> str:
        """The other format's: the codes of the weights are the same."""
        return self.fmt.name

    @property
    def bits(self) -> int:
        return self.fmt.bits

    @property
    def block(self) -> int:
        return self.fmt.block

    def with_block(self, block: int) -> BlockFormat:
        """See `BlockFormat.with_block`."""
        return CodedScales(self.fmt.with_block(block))

    @property
    def has_zero_points(self) -> bool:
        return self.fmt.has_zero_points

    @property
    def expected_error(self) -> float:
        return self.fmt.expected_error

    @property
    def recipe_bits(self) -> int:
        return self.fmt.recipe_bits

    @property
    def max_code(self) -> int:
        return self.fmt.max_code

    @property
    def operator(self) -> str:
        return self.fmt.operator

    @property
    def rounding(self) -> str:
        return self.fmt.rounding

    @property
    def holds_embedding(self) -> bool:
        return self.fmt.holds_embedding

    def quantize(self, rows: Float32) -> PackedMatrix:
        """See `BlockFormat.quantize`: the other format's scales, rounded; its zero-points; and
        every weight rounded to the grid that these make."""
        found = self.fmt.quantize(rows)
        coded = code_scales(found.scales)
        scales = coded.values
        middle = np.float32(1 << (self.bits - 1))
        zeros = (
            np.full(scales.shape, middle, np.float32)
            if found.zero_points is None
            else unpack(found.zero_points, self.bits)[:, : scales.shape[1]].astype(np.float32)
        )
        codes = np.rint(to_blocks(rows, self.block) / scales[..., None])
        codes += zeros[..., None]
        np.clip(codes, 0, self.max_code, out=codes)
        return PackedMatrix(
            pack(codes.astype(np.uint8), self.bits), scales, found.zero_points, coded
        )

    def dequantize(self, packed: PackedMatrix, *, columns: int) -> Float32:
        """See `BlockFormat.dequantize`."""
        return self.fmt.dequantize(packed, columns=columns)


def code_scales(scales: Float32) -> ScaleCodes:
    """The nearest codes of positive scales [N, blocks]; none becomes zero."""
    units = scales.max(axis=1, keepdims=True) / _LARGEST
    units = np.where(units > _TINY, units, _TINY).astype(np.float32)
    codes = np.clip(np.rint(scales / units), 1, _LARGEST)
    return ScaleCodes(codes.astype(np.uint8), units)
