"""Define the formats of onnxruntime's MatMulNBits and GatherBlockQuantized operators.

A matrix [N, K] (one row per output feature) is cut along K into blocks; the last one is padded
with zeros. Each block stores unsigned codes and one float32 scale:

    weight = scale * (code - zero_point)

where the zero-point is a stored code, or 2 ** (bits - 1) where a format stores none.
Layout: com.microsoft.MatMulNBits in onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

# What multiplies with blocks, in the domain com.microsoft.
BLOCK_OPERATOR = "MatMulNBits"
# Its kernels know no smaller blocks.
_MIN_BLOCK = 16


@dataclass(frozen=True)
class ScaleCodes:
    """Scales in 8 bits: a code for each block, times a unit for each row.

    Attributes:
        codes: uint8 [N, blocks], at least 1.
        units: float32 [N, 1].
    """

    codes: UInt8
    units: Float32

    @property
    def values(self) -> Float32:
        """float32 [N, blocks]: just what a float32 product of the two gives."""
        return self.codes.astype(np.float32) * self.units


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized matrix [N, K], in onnxruntime's layout.

    Attributes:
        data: uint8 [N, blocks, block * bits / 8]; the first of two 4-bit codes is the low half.
        scales: float32 [N, blocks].
        zero_points: uint8 [N, ceil(blocks * bits / 8)], packed as `data` is; None = 2**(bits - 1).
        coded: the same scales in 8 bits, for formats that store them so; None = as float32.
        offsets: what is added to each block's weights, a matrix [N, blocks] of its own; None = 0.
    """

    data: UInt8
    scales: Float32
    zero_points: UInt8 | None
    coded: ScaleCodes | None = None
    offsets: PackedMatrix | None = None


class BlockFormat(ABC):
    """A number format with one scale per block of weights. Rows are independent of each other.

    A subclass is a frozen dataclass whose first field is `block`. It says all that the rest must
    know of it; see `edgesdk_quantize.formats.registry`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """In recipes, manifests, logs and on the command line, e.g. "int4"."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Bits that a code is stored in: 4 or 8, as the operators read them."""

    @property
    @abstractmethod
    def block(self) -> int:
        """Weights that share a scale: a power of two, at least 16."""

    @property
    @abstractmethod
    def has_zero_points(self) -> bool:
        """Whether zero-points are stored."""

    @property
    @abstractmethod
    def expected_error(self) -> float:
        """The root mean square of the errors of Gaussian weights, relative to that of the weights.

        A rounded grid has a step of (range of a block of 32, about 4.2 standard deviations) /
        (2^bits - 1); the error is that over the square root of 12. 8 bits are set three times as
        high, since kernels round what the weights are multiplied with to 8 bits as well: on
        Qwen2.5-Coder-1.5B, whose inputs have outliers, that alone costs 0.006 nats.
        """

    @abstractmethod
    def quantize(self, rows: Float32) -> PackedMatrix:
        """Quantize float32 [N, K].

        Raises:
            ValueError: a weight is NaN or infinite; the message gives its row and column.
        """

    @abstractmethod
    def dequantize(self, packed: PackedMatrix, *, columns: int) -> Float32:
        """The float32 [N, columns] that an operator computes with."""

    @property
    def recipe_bits(self) -> int:
        """What `bits` in a recipe says to get this format."""
        return self.bits

    @property
    def max_code(self) -> int:
        """Codes run from 0 to this one."""
        return (1 << self.bits) - 1

    @property
    def operator(self) -> str:
        """The graph operator that multiplies with it."""
        return BLOCK_OPERATOR

    @property
    def rounding(self) -> str:
        """How `quantize` finds the codes, in words for the manifest."""
        return "round to nearest"

    @property
    def has_coded_scales(self) -> bool:
        """Whether scales are stored in 8 bits, not as float32; they are positive then."""
        return False

    @property
    def has_offsets(self) -> bool:
        """Whether a real offset is stored for each block; the block divides the columns then."""
        return False

    @property
    def holds_embedding(self) -> bool:
        """Whether embeddings and heads may be stored in it."""
        return False

    @property
    def mix_blocks(self) -> tuple[int, ...]:
        """In which block sizes a matrix may have it where formats are mixed; () = not at all."""
        return ()

    @property
    def reads_steps(self) -> bool:
        """Whether `requantize` makes use of the steps."""
        return False

    def requantize(self, rows: Float32, steps: Float32 | None) -> PackedMatrix:
        """As `quantize`, for weights that were rounded to a grid before.

        Args:
            steps: float32 [N, blocks], the step of that grid in each block, where it is known.
        """
        return self.quantize(rows)

    def with_block(self, block: int) -> BlockFormat:
        """This format with another size of block."""
        return cast("Callable[[int], BlockFormat]", type(self))(block)

    def for_columns(self, columns: int) -> BlockFormat:
        """This format, or the one that stands in for it in a matrix of so many columns.

        A graph reads the block size back from the number of blocks, so a block is at most the
        power of two that holds the columns.
        """
        block = min(self.block, max(_MIN_BLOCK, 1 << (columns - 1).bit_length()))
        return self if block == self.block else self.with_block(block)

    def dividing(self, columns: int) -> BlockFormat | None:
        """This format, with a smaller block where its own does not divide the columns; None where
        none does. onnxruntime's gather takes whole blocks only."""
        block = min(self.block, columns & -columns)
        if block < _MIN_BLOCK:
            return None
        return self if block == self.block else self.with_block(block)

    def stored_bits(self, rows: int, columns: int) -> int:
        """Bits of a matrix [rows, columns]: codes, scales, and zero-points or offsets."""
        blocks = -(-columns // self.block)
        zeros = -(-blocks * self.bits // 8) * 8 if self.has_zero_points else 0
        scales = 8 * blocks + 32 if self.has_coded_scales else 32 * blocks
        return rows * (blocks * self.block * self.bits + scales + zeros)


def dequantize(packed: PackedMatrix, *, bits: int, columns: int) -> Float32:
    """The float32 [N, columns] that an operator computes with."""
    rows, blocks, _ = packed.data.shape
    codes = unpack(packed.data, bits).astype(np.float32)
    if packed.zero_points is None:
        zeros: Float32 = np.full((rows, blocks), 1 << (bits - 1), np.float32)
    else:
        zeros = unpack(packed.zero_points, bits)[:, :blocks].astype(np.float32)
    weights: Float32 = (codes - zeros[..., None]) * packed.scales[..., None]
    return weights.reshape(rows, -1)[:, :columns]


def stack_rows(pieces: Sequence[PackedMatrix], bits: int) -> PackedMatrix:
    """Rows of matrices of as many columns in one; where some of them store zero-points, all do."""
    if any(piece.zero_points is not None for piece in pieces):
        pieces = [with_zero_points(piece, bits) for piece in pieces]
    zeros = [piece.zero_points for piece in pieces if piece.zero_points is not None]
    coded = [piece.coded for piece in pieces if piece.coded is not None]
    offsets = [piece.offsets for piece in pieces if piece.offsets is not None]
    return PackedMatrix(
        np.concatenate([piece.data for piece in pieces]),
        np.concatenate([piece.scales for piece in pieces]),
        np.concatenate(zeros) if zeros else None,
        ScaleCodes(
            np.concatenate([part.codes for part in coded]),
            np.concatenate([part.units for part in coded]),
        )
        if len(coded) == len(pieces)
        else None,
        stack_rows(offsets, 8) if offsets else None,
    )


def take_rows(packed: PackedMatrix, rows: slice | npt.NDArray[np.int64]) -> PackedMatrix:
    """Some rows of a matrix, by their numbers."""
    coded, offsets = packed.coded, packed.offsets
    return PackedMatrix(
        packed.data[rows],
        packed.scales[rows],
        None if packed.zero_points is None else packed.zero_points[rows],
        None if coded is None else ScaleCodes(coded.codes[rows], coded.units[rows]),
        None if offsets is None else take_rows(offsets, rows),
    )


def with_zero_points(packed: PackedMatrix, bits: int) -> PackedMatrix:
    """The same weights with zero-points stored; for a matrix some of whose rows need them."""
    if packed.zero_points is not None:
        return packed
    zeros = np.full(packed.scales.shape, 1 << (bits - 1), np.uint8)
    return PackedMatrix(packed.data, packed.scales, pack(zeros, bits), packed.coded)


def pack(codes: UInt8, bits: int) -> UInt8:
    """Codes [..., n] as bytes [..., ceil(n * bits / 8)], low half first."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: UInt8 = codes[..., 0::2] | codes[..., 1::2] * np.uint8(16)
    return packed


def unpack(data: UInt8, bits: int) -> UInt8:
    """The inverse of `pack`; an odd tail comes back with one code more."""
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def to_blocks(rows: Float32, block: int) -> Float32:
    """float32 [N, K] as [N, blocks, block], the tail padded with zeros.

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    check_finite(rows)
    padding = -rows.shape[1] % block
    if padding:
        rows = np.pad(rows, ((0, 0), (0, padding)))
    return rows.reshape(rows.shape[0], -1, block)


def check_finite(values: npt.NDArray[np.floating], *, first_row: int = 0) -> None:
    """Refuse NaN and infinities.

    Args:
        first_row: what the first row is called in the message, where `values` are a part.

    Raises:
        ValueError: with the index and the value of the first one.
    """
    finite = np.isfinite(values)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        place = [first_row + index[0], *index[1:]]
        raise ValueError(f"the value at {place} is {values[index]}")
