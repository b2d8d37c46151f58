"""Write the weights of an ONNX decoder into the weight file of a Core ML package.

No code changes on the way. Core ML computes `scale * (data - offset)` in float16, where an ONNX
bundle has `scale * (code - zero_point)`. A block whose scale is negative gets the codes counted
from the other end, `-scale * ((top - code) - (top - zero_point))`, since other makers of such
weights give positive scales only. Where every zero-point is then the middle one, codes are stored
as signed numbers and need no offsets.

Scales, norms, biases and matrices of floats are rounded to float16; `as_stored` gives the weights
with the same rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from coremltools.libmilstoragepython import _BlobStorageWriter
from coremltools.proto import MIL_pb2
from edgesdk_quantize.formats.blocks import unpack

from edgesdk.errors import ExportError
from edgesdk_export.coreml.mil import FLOAT16, Blob, MilFunction, MilValue
from edgesdk_export.onnx.stored_weights import StoredTensors

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_ROUNDED = (".scales", ".weight", ".bias")
_SIGNED = {4: MIL_pb2.INT4, 8: MIL_pb2.INT8}
_UNSIGNED = {4: MIL_pb2.UINT4, 8: MIL_pb2.UINT8}
_BITS = {
    FLOAT16: 16,
    **{dtype: bits for kinds in (_SIGNED, _UNSIGNED) for bits, dtype in kinds.items()},
}


@dataclass(frozen=True)
class StoredBlocks:
    """A matrix in blocks; `offsets` is None where the data are signed numbers."""

    data: Blob
    scales: Blob
    offsets: Blob | None

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All that it is stored in."""
        return (self.data, self.scales, *([] if self.offsets is None else [self.offsets]))


@dataclass(frozen=True)
class StoredFloats:
    """A matrix of floats."""

    weight: Blob

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All that it is stored in."""
        return (self.weight,)


class WeightFile:
    """The weight file of a package; what both functions ask for is written once.

    Args:
        path: of the file, which is made anew.
        tensors: the weights of an ONNX decoder (`edgesdk_export.onnx.stored_weights`).
    """

    def __init__(self, path: Path, tensors: StoredTensors) -> None:
        self._writer = _BlobStorageWriter(str(path))
        self._tensors = tensors
        self._written: dict[str, StoredBlocks | StoredFloats] = {}

    @property
    def bits(self) -> int:
        """How many bits all weights take, scales and offsets too."""
        return sum(
            int(np.prod(blob.shape)) * _BITS[blob.dtype]
            for stored in self._written.values()
            for blob in stored.blobs
        )

    def matrix(self, function: MilFunction, name: str, columns: int) -> MilValue:
        """A matrix [rows, columns] as a constant of a function.

        Raises:
            ExportError: Core ML cannot hold it.
        """
        stored = self._once(name, lambda: self._matrix(name, columns))
        if isinstance(stored, StoredFloats):
            return function.weight(f"{name}.weight", stored.weight)
        return function.blocks(f"{name}.weight", stored.data, stored.scales, stored.offsets)

    def vector(self, function: MilFunction, name: str) -> MilValue:
        """A norm's gains or a bias as a constant of a function."""
        stored = self._once(name, lambda: StoredFloats(self._floats(name)))
        assert isinstance(stored, StoredFloats)
        return function.weight(name, stored.weight)

    def zeros(self, function: MilFunction, size: int) -> MilValue:
        """A vector of zeros, for an operator that wants a bias."""
        name = f"zeros_{size}"
        stored = self._once(name, lambda: StoredFloats(self._write_floats(np.zeros(size))))
        return function.weight(name, stored.blobs[0])

    def has(self, name: str) -> bool:
        """Whether the decoder has a weight of that name."""
        return name in self._tensors

    def _once(
        self, name: str, write: Callable[[], StoredBlocks | StoredFloats]
    ) -> StoredBlocks | StoredFloats:
        if name not in self._written:
            self._written[name] = write()
        return self._written[name]

    def _matrix(self, name: str, columns: int) -> StoredBlocks | StoredFloats:
        if f"{name}.weight" in self._tensors:
            return StoredFloats(self._floats(f"{name}.weight"))
        if f"{name}.scales" not in self._tensors or f"{name}.offsets.codes" in self._tensors:
            raise ExportError(
                f"Core ML has no blocks with scales in 8 bits or real offsets, as {name} has.",
                hint="Choose a recipe with float32 scales and without offsets, such as fast.",
            )
        scales = self._tensors[f"{name}.scales"].numpy()
        rows, blocks = scales.shape
        # An embedding that is only gathered from is stored as rows.
        codes_name = f"{name}.codes" if f"{name}.codes" in self._tensors else f"{name}.rows"
        data = self._tensors[codes_name].numpy().reshape(rows, -1)
        bits = data.shape[1] * 8 // _padded(columns, blocks)
        codes = unpack(data, bits)
        if codes.shape[1] != columns:
            raise ExportError(
                f"{name} has {columns} columns, which its {blocks} blocks do not divide; Core ML"
                " pads no blocks.",
                hint="Choose fp16 weights, or a recipe with a smaller block.",
            )
        zeros = self._zero_points(name, bits, rows, blocks)
        return self._blocks(codes.reshape(rows, blocks, -1), scales, zeros, bits)

    def _zero_points(self, name: str, bits: int, rows: int, blocks: int) -> UInt8:
        if f"{name}.zero_points" not in self._tensors:
            return np.full((rows, blocks), 1 << (bits - 1), np.uint8)
        return unpack(self._tensors[f"{name}.zero_points"].numpy(), bits)[:, :blocks]

    def _blocks(self, codes: UInt8, scales: Float32, zeros: UInt8, bits: int) -> StoredBlocks:
        """Store codes [rows, blocks, block] with scales and zero-points [rows, blocks]."""
        top = np.uint8((1 << bits) - 1)
        negative = scales < 0
        if negative.any():
            codes = np.where(negative[..., None], top - codes, codes)
            zeros = np.where(negative, top - zeros, zeros)
        rows, blocks, block = codes.shape
        shape = (rows, blocks * block)
        middle = np.uint8(1 << (bits - 1))
        write = self._writer
        if (zeros == middle).all():
            signed = (codes ^ middle).view(np.int8)
            if bits == 4:
                # Four bits of two's complement, with the sign in all of the upper ones.
                signed = ((signed << 4) >> 4).astype(np.int8)
                offset = write.write_int4_data(signed.reshape(-1))
            else:
                offset = write.write_int8_data(signed.reshape(-1))
            data, offsets = Blob(_SIGNED[bits], shape, offset), None
        else:
            unsigned = write.write_uint4_data if bits == 4 else write.write_uint8_data
            data = Blob(_UNSIGNED[bits], shape, unsigned(codes.reshape(-1)))
            offsets = Blob(
                _UNSIGNED[bits], (rows, blocks), unsigned(np.ascontiguousarray(zeros).reshape(-1))
            )
        return StoredBlocks(data, self._write_floats(np.abs(scales)), offsets)

    def _floats(self, name: str) -> Blob:
        return self._write_floats(self._tensors[name].numpy())

    def _write_floats(self, values: npt.NDArray[Any]) -> Blob:
        bits = _rounded(values).reshape(-1).view(np.uint16)
        return Blob(FLOAT16, values.shape, self._writer.write_fp16_data(bits))


def as_stored(tensors: StoredTensors) -> StoredTensors:
    """The weights of an ONNX decoder, with all that a package rounds to float16 rounded so."""
    return tensors.mapped(_as_stored)


def _as_stored(name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not name.endswith(_ROUNDED):
        return tensor

    def rounded() -> ir.TensorProtocol:
        values = tensor.numpy()
        return ir.tensor(_rounded(values).astype(values.dtype), name=name)

    return ir.LazyTensor(
        rounded, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
    )


def _rounded(values: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Float16, as long as the range of float16 goes.

    Raises:
        ExportError: a value is beyond it.
    """
    largest = float(np.abs(values).max(initial=0))
    if not largest <= float(np.finfo(np.float16).max):
        raise ExportError(
            f"A weight has the magnitude {largest:g}, and Core ML computes in float16, which ends"
            " at 65504.",
            hint="Export the model for another device.",
        )
    return np.ascontiguousarray(values, np.float16)


def _padded(columns: int, blocks: int) -> int:
    """Columns with those that fill the last block up; a block is a power of two, at least 16."""
    return blocks * max(16, 1 << (-(-columns // blocks) - 1).bit_length())
