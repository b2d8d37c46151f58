"""8-bit codes around a fixed zero-point of 128."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import Float32, Packed, to_blocks

_ZERO = 128
_LARGEST = 127


@dataclass(frozen=True)
class Int8:
    """Symmetric 8-bit blocks, rounded to nearest: 9 bits a weight at a block of 32."""

    block: int = 32
    name: str = "int8"
    bits: int = 8
    has_zero_points: bool = False

    def quantize(self, rows: Float32) -> Packed:
        """See `BlockFormat.quantize`."""
        blocks = to_blocks(rows, self.block)
        scales = np.abs(blocks).max(axis=-1) / np.float32(_LARGEST)
        # A block of zeros, or of numbers too small to divide by, becomes zeros.
        scales = np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1))
        codes = np.rint(blocks / scales[..., None]).astype(np.int16) + _ZERO
        return Packed(codes.astype(np.uint8), scales, None)
