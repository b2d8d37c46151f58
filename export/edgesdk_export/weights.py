"""Read weights when they are asked for, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats import BlockFormat, PackedMatrix
from edgesdk_quantize.formats.blocks import check_finite

from edgesdk.bundle.encoder_spec import EncoderSpec
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import ExportError

Float32 = npt.NDArray[np.float32]

# 16 MiB of float32 at a time keeps a chunk in cache reach and memory flat.
_CHUNK_VALUES = 4 * 2**20


class LazyTensor(Protocol):
    """A tensor on disk: [rows, ...] or a vector."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """The type it is stored in, in its container's spelling: "BF16", "F32", "Q4_K"."""

    def rows(self, start: int, stop: int) -> Float32:
        """Values of rows [start, stop) along axis 0 as float32 [stop - start, ...]."""


@runtime_checkable
class BlockTensor(LazyTensor, Protocol):
    """A matrix on disk that has been rounded to blocks once, and may hand them over as they are,
    so that it is not rounded again."""

    def preserved_format(self, fmt: BlockFormat) -> BlockFormat | None:
        """The format, of `fmt`'s bits and block, in which the blocks are handed over; None where
        they do not fit, and the values have to be rounded again."""

    def blocks(self, fmt: BlockFormat, start: int, stop: int) -> PackedMatrix:
        """Rows [start, stop) in a format of `preserved_format`: the same values as `rows` gives."""

    def steps(self, block: int, start: int, stop: int) -> Float32 | None:
        """Of rows [start, stop): the distance of neighbouring values in each block, float32
        [stop - start, blocks]. None where it is not known, or not the same within a block."""


@dataclass(frozen=True)
class Decoder:
    """A decoder that can be exported: what it is, and its weights under canonical names.

    `weights` has exactly the names and shapes of `canonical_shapes(spec)`.
    """

    spec: DecoderSpec
    weights: Mapping[str, LazyTensor]


@dataclass(frozen=True)
class Encoder:
    """An encoder that can be exported; `weights` has the names of `encoder_shapes(spec)`."""

    spec: EncoderSpec
    weights: Mapping[str, LazyTensor]


@runtime_checkable
class PackedTensor(LazyTensor, Protocol):
    """A matrix on disk that can also give its rows as the bytes that they are stored in."""

    def packed(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) as they are stored, uint8 [stop - start, bytes of a row]."""


def read_whole(tensor: LazyTensor) -> Float32:
    """All of a tensor as float32; for small ones (norms, biases)."""
    return tensor.rows(0, tensor.shape[0])


def require_finite(name: str, values: Float32, *, first_row: int = 0) -> Float32:
    """`values`, which are rows of weight `name` from `first_row` on, if all are numbers.

    Raises:
        ExportError: with the place of the first that is not.
    """
    try:
        check_finite(values, first_row=first_row)
    except ValueError as error:
        raise ExportError(
            f"Weight {name}: {error}.", hint="The checkpoint is broken; get it again."
        ) from None
    return values


def row_ranges(tensor: LazyTensor, *, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """[start, stop) of a tensor's rows in order, about 16 MiB of float32 each, whose row counts are
    multiples of `multiple` (the last one excepted)."""
    per_row = int(np.prod(tensor.shape[1:], dtype=np.int64)) or 1
    step = max(multiple, _CHUNK_VALUES // per_row // multiple * multiple)
    for start in range(0, tensor.shape[0], step):
        yield start, min(start + step, tensor.shape[0])


def row_chunks(tensor: LazyTensor, *, multiple: int = 1) -> Iterator[Float32]:
    """A tensor in order, in the pieces of `row_ranges`."""
    for start, stop in row_ranges(tensor, multiple=multiple):
        yield tensor.rows(start, stop)
