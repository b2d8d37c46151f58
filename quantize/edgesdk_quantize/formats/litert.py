"""Define the formats of LiteRT's FULLY_CONNECTED: signed codes, symmetric, with positive scales.

    int8-litert   one float32 scale for each row
    int4-litert   one scale for each block of 32 columns: a float16 that is a bfloat16 as well

    weight = scale * code

Kernels refuse scales that are not positive, normal numbers. A file has scales of blocks in float16,
and XNNPACK computes with them in bfloat16: one that is not both would be another one where the
model runs. Layout: `QuantizationParameters` and `BlockwiseQuantization` in LiteRT's schema.fbs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import Float32, UInt8
from edgesdk_quantize.formats.qdq import Qdq, QdqWeights

# The smallest normal float16, and the largest that is a bfloat16 too.
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-14, 65280.0


@dataclass(frozen=True)
class LitertFormat:
    """One of the two formats.

    Attributes:
        grid: how the codes are found.
        expected_error: see `BlockFormat.expected_error`; the kernels round what the weights are
            multiplied with to 8 bits.
    """

    name: str
    grid: Qdq
    expected_error: float

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.grid.weight_bits

    @property
    def recipe_bits(self) -> int:
        """What `bits` in a recipe says to get this format."""
        return self.bits

    @property
    def block(self) -> int | None:
        """Weights of a row that share a scale; None = the whole row."""
        return self.grid.block

    def quantize(self, rows: Float32) -> QdqWeights:
        """Quantize float32 [N, K]; K is a multiple of the block.

        Returns:
            Scales are float32 [N], or [N, K / block] of which each is exactly a float16.

        Raises:
            ValueError: a weight is NaN or infinite; the message gives its row and column.
        """
        found = self.grid.quantize(rows)
        if self.block is None:
            return found
        scales = _block_scales(found.scales)
        codes = np.rint(rows / np.repeat(scales, self.block, axis=1))
        return QdqWeights(np.clip(codes, -8, 7).astype(np.int8), scales)

    def dequantize(self, packed: QdqWeights) -> Float32:
        """The float32 [N, K] that the kernels compute with."""
        return self.grid.dequantize(packed)

    def stored(self, packed: QdqWeights) -> UInt8:
        """The bytes of the codes, row by row; of two 4-bit codes the first is the low half."""
        return self.grid.stored(packed)

    def stored_bits(self, rows: int, columns: int) -> int:
        """Bits of a matrix [rows, columns], scales and all."""
        scales = 32 if self.block is None else 16 * (columns // self.block)
        return rows * (columns * self.bits + scales)


def _block_scales(scales: Float32) -> Float32:
    """The nearest numbers of 8 significant bits, as bfloat16 has, within float16's range."""
    within = np.clip(scales, _SMALLEST_SCALE, _LARGEST_SCALE).astype(np.float32)
    bits = (within.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
    rounded: Float32 = bits.view(np.float32)
    return rounded


INT8_LITERT = LitertFormat("int8-litert", Qdq("int8", 8, 8), 0.015)
INT4_LITERT = LitertFormat("int4-litert", Qdq("int4", 8, 4, block=32), 0.08)
