"""Store weights as floats of 32 or 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk_quantize.formats.blocks import Float32

# What multiplies with floats, in the domain com.microsoft.
FLOAT_OPERATOR = "FusedMatMul"


@dataclass(frozen=True)
class FloatFormat:
    """A type of floats. The graph turns it into float32 where it is loaded.

    Attributes:
        name: in recipes, manifests and on the command line.
        bits: of a weight.
        expected_error: see `BlockFormat.expected_error`: what the kernels' own approximations of
            exp and tanh come to.
        operator: what multiplies with it.
    """

    name: str
    bits: int
    expected_error: float
    operator: str = FLOAT_OPERATOR

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        """float32 or float16."""
        return np.dtype(f"f{self.bits // 8}")

    @property
    def recipe_bits(self) -> int:
        """What `bits` in a recipe says to get this format."""
        return self.bits

    def quantize(self, values: Float32) -> npt.NDArray[np.floating[Any]]:
        """The values in this type.

        Raises:
            ValueError: one is beyond the type's range; the message begins with "has".
        """
        if self.bits < 32:
            largest, limit = float(np.abs(values).max()), float(np.finfo(self.dtype).max)
            if not largest <= limit:
                raise ValueError(
                    f"has a value of magnitude {largest:g}; {self.dtype.name} ends at {limit:g}"
                )
        return values.astype(self.dtype, copy=False)

    def stored_bits(self, rows: int, columns: int) -> int:
        """Bits of a matrix [rows, columns]."""
        return rows * columns * self.bits


FP32 = FloatFormat("fp32", 32, 5e-4)
FP16 = FloatFormat("fp16", 16, 1e-3)
