"""QDQ formats: every tensor between QuantizeLinear and DequantizeLinear, as NPU compilers want it.

    a8w8     inputs uint8,  weights int8
    a16w8    inputs uint16, weights int8
    a16w4    inputs uint16, weights int4
    w8, w4   inputs stay floats, weights int8 or int4

Weights are symmetric: `weight = scale * code`, no zero-point (with another one than 0, Qualcomm's
HTP computes garbage from int4 without a word), and scales are positive. Inputs have one scale and
one zero-point for a whole tensor, made from the range that calibration saw:
`value = scale * (code - zero_point)`. Operators: QuantizeLinear and DequantizeLinear of ONNX opset
21, whose axis is 0 for a scale per row and 1, with `block_size`, for a scale per block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesdk_quantize.formats.blocks import Float32, UInt8, check_finite, pack

# Smaller steps than this are treated as zero: their reciprocals would overflow.
_TINY = np.float32(1e-30)
# Rows are searched together until they have this many values: 1 MiB of float32.
_TILE_VALUES = 2**18
# Shares of the largest magnitude that the largest code may stand for. A row of a thousand
# bell-shaped weights is best served at about .7, a short block at 1.
_FACTORS = (1.0, 0.94, 7 / 8, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52)


@dataclass(frozen=True)
class QdqWeights:
    """A matrix [N, K] as signed codes.

    Attributes:
        codes: int8 [N, K], of 4 bits in [-8, 7], of 8 bits in [-127, 127].
        scales: float32 [N], or [N, ceil(K / block)].
    """

    codes: npt.NDArray[np.int8]
    scales: Float32


@dataclass(frozen=True)
class ActivationGrid:
    """How the values of one tensor are rounded while a model runs.

    Attributes:
        scale: positive; exactly a float32.
        zero_point: the code of 0.0, in [0, 2**bits - 1].
        bits: 8 or 16.
    """

    scale: float
    zero_point: int
    bits: int

    @classmethod
    def covering(cls, low: float, high: float, bits: int) -> ActivationGrid:
        """The grid that reaches from `low` to `high` and has a code for 0.0, as padding needs it.

        Raises:
            ValueError: the range is upside down or not finite.
        """
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise ValueError(f"[{low}, {high}] is no range of values")
        levels = (1 << bits) - 1
        low, high = min(low, 0.0), max(high, 0.0)
        scale = np.float32((high - low) / levels)
        if scale <= _TINY:
            return cls(1.0, 0, bits)
        zero = round(-low / float(scale))
        return cls(float(scale), min(max(zero, 0), levels), bits)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of codes: uint8 or uint16."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    def quantize(self, values: Float32) -> npt.NDArray[np.unsignedinteger]:
        """Codes of float32 values of any shape, as QuantizeLinear computes them."""
        codes: Float32 = np.rint(values / np.float32(self.scale)) + np.float32(self.zero_point)
        return codes.clip(0, (1 << self.bits) - 1).astype(self.dtype)

    def dequantize(self, codes: npt.NDArray[np.unsignedinteger]) -> Float32:
        """The float32 values of codes, as DequantizeLinear computes them."""
        shifted: Float32 = codes.astype(np.float32) - np.float32(self.zero_point)
        shifted *= np.float32(self.scale)
        return shifted


@dataclass(frozen=True)
class Qdq:
    """One pair of widths.

    Attributes:
        activation_bits: 0 = inputs are not rounded.
        block: weights of a row that share a scale; None = the whole row.
    """

    name: str
    activation_bits: int
    weight_bits: int
    block: int | None = None

    @property
    def expected_error(self) -> float:
        """See `BlockFormat.expected_error`."""
        return 0.08 if self.weight_bits == 4 else 0.01

    def quantize(self, rows: Float32) -> QdqWeights:
        """Quantize float32 [N, K]. 8 bits are rounded to nearest; for 4 bits the scale is searched
        for the least squared error.

        Raises:
            ValueError: a weight is NaN or infinite; the message gives its row and column.
        """
        check_finite(rows)
        count, columns = rows.shape
        length = self.block or columns
        groups = -(-columns // length)
        codes = np.empty((count, columns), np.int8)
        scales = np.empty((count, groups), np.float32)
        step = max(1, _TILE_VALUES // columns)
        for start in range(0, count, step):
            part = rows[start : start + step]
            padded = np.pad(part, ((0, 0), (0, groups * length - columns)))
            found, steps = _round(padded.reshape(len(part), groups, length), self.weight_bits)
            codes[start : start + step] = found.reshape(len(part), -1)[:, :columns]
            scales[start : start + step] = steps
        return QdqWeights(codes, scales if self.block else scales[:, 0])

    def dequantize(self, packed: QdqWeights) -> Float32:
        """The float32 [N, K] that DequantizeLinear gives."""
        columns = packed.codes.shape[1]
        if self.block is None:
            return packed.codes.astype(np.float32) * packed.scales[:, None]
        wide = np.repeat(packed.scales, self.block, axis=1)[:, :columns]
        return packed.codes.astype(np.float32) * wide

    def stored(self, packed: QdqWeights) -> UInt8:
        """The bytes of the ONNX tensor int8 or int4 [N, K]: of two 4-bit codes that follow each
        other in row-major order, the first is the low half."""
        if self.weight_bits == 8:
            return packed.codes.view(np.uint8).reshape(-1)
        return pack(packed.codes.reshape(-1).view(np.uint8) & np.uint8(15), 4)

    def activation(self, low: float, high: float) -> ActivationGrid:
        """The grid of an input whose values calibration saw within [low, high].

        Raises:
            ValueError: the range is upside down or not finite.
        """
        return ActivationGrid.covering(low, high, self.activation_bits)


A8W8 = Qdq("a8w8", 8, 8)
A16W8 = Qdq("a16w8", 16, 8)
A16W4 = Qdq("a16w4", 16, 4)
W8 = Qdq("w8", 0, 8)
W4 = Qdq("w4", 0, 4)


def _round(groups: Float32, bits: int) -> tuple[Float32, Float32]:
    """Codes [n, groups, length] and scales [n, groups]."""
    largest = np.float32((1 << (bits - 1)) - 1)
    smallest = -largest if bits == 8 else -largest - 1
    unit = np.abs(groups).max(axis=-1) / largest
    unit = np.where(unit > _TINY, unit, np.float32(1))
    # In units of the plain step no sum of squares can overflow.
    scaled = groups / unit[..., None]
    step = np.ones_like(unit)
    if bits == 4:
        step = _search(scaled, smallest, largest)
    codes = np.clip(np.rint(scaled / step[..., None]), smallest, largest)
    return codes, unit * step


def _search(scaled: Float32, smallest: np.float32, largest: np.float32) -> Float32:
    """The step [n, groups] with the least squared error. With codes c fixed, the best one is
    sum(x c) / sum(c c), and the error falls as sum(x c)^2 / sum(c c) grows."""
    best = np.zeros(scaled.shape[:-1], np.float32)
    step = np.ones_like(best)
    for factor in _FACTORS:
        codes = np.clip(np.rint(scaled / np.float32(factor)), smallest, largest)
        along = np.einsum("...i,...i->...", scaled, codes)
        energy = np.maximum(np.einsum("...i,...i->...", codes, codes), np.float32(1))
        gain = along * along / energy
        better = gain > best
        best = np.where(better, gain, best)
        step = np.where(better, along / energy, step)
    return step
