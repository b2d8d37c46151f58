"""Reads the stored weights of an ONNX bundle into MLX's layout; no number changes on the way.

An ONNX bundle stores a matrix in blocks, `weight = scale * (code - zero_point) + offset`. MLX
computes `weight = scale * code + bias` over groups of 32, 64 or 128 codes, packed low bits first
into uint32. So `bias = offset - scale * zero_point`, and codes are packed anew. Blocks of other
sizes, of which the kernels know none, become floats.

Layouts: `edgesdk_export.onnx.stored_weights` for the names; com.microsoft.MatMulNBits in
onnxruntime's docs/ContribOperators.md; `mlx.core.quantize` in MLX's documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgesdk.errors import EngineError

Array = npt.NDArray[Any]

_GROUPS = (128, 64, 32)
_WORD_BITS = 32


@dataclass(frozen=True)
class FloatMatrix:
    """A matrix of floats.

    Attributes:
        weight: [rows, columns], in the numbers that the engine computes with.
        bias: [rows]; None for none.
    """

    weight: mx.array
    bias: mx.array | None

    def multiply(self, x: mx.array) -> mx.array:
        """x [..., columns] times the transposed matrix, plus the bias: [..., rows]."""
        product = x @ self.weight.T
        return product if self.bias is None else product + self.bias

    def rows(self, ids: mx.array) -> mx.array:
        """The rows of these ids: [..., columns]."""
        return self.weight[ids]


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix of codes in groups.

    Attributes:
        codes: uint32 [rows, columns * bits / 32].
        scales, offsets: [rows, columns / group_size]; weight = scale * code + offset.
        bias: [rows]; None for none.
    """

    codes: mx.array
    scales: mx.array
    offsets: mx.array
    bits: int
    group_size: int
    bias: mx.array | None

    def multiply(self, x: mx.array) -> mx.array:
        """x [..., columns] times the transposed matrix, plus the bias: [..., rows]."""
        product = mx.quantized_matmul(
            x,
            self.codes,
            self.scales,
            self.offsets,
            transpose=True,
            group_size=self.group_size,
            bits=self.bits,
        )
        return product if self.bias is None else product + self.bias

    def rows(self, ids: mx.array) -> mx.array:
        """The rows of these ids: [..., columns]."""
        return mx.dequantize(
            self.codes[ids],
            self.scales[ids],
            self.offsets[ids],
            group_size=self.group_size,
            bits=self.bits,
        )


Matrix = FloatMatrix | QuantizedMatrix


class StoredWeights:
    """The weights of one bundle, by their stored names. To be used on one thread.

    Args:
        path: the bundle's ONNX model.
        dtype: the numbers that the engine computes with.

    Raises:
        EngineError: the file cannot be read.
    """

    def __init__(self, path: Path, dtype: mx.Dtype) -> None:
        try:
            initializers = ir.load(path).graph.initializers
        except Exception as error:
            # onnx_ir raises what the libraries below it raise.
            raise EngineError(
                f"{path} cannot be read: {error}", hint="Check it with: edgesdk verify"
            ) from error
        self._path = path
        self._dtype = dtype
        self._tensors: Mapping[str, ir.TensorProtocol] = {
            name: value.const_value
            for name, value in initializers.items()
            if value.const_value is not None
        }

    def vector(self, name: str) -> mx.array:
        """A norm's gain or a bias."""
        return mx.array(self._read(name)).astype(self._dtype)

    def matrix(self, name: str, columns: int) -> Matrix:
        """A stored matrix of so many columns.

        Raises:
            EngineError: the bundle does not have it.
        """
        bias = self.vector(f"{name}.bias") if f"{name}.bias" in self._tensors else None
        if f"{name}.scales" not in self._tensors and f"{name}.scale_codes" not in self._tensors:
            return FloatMatrix(self.vector(f"{name}.weight"), bias)
        codes, scales, offsets, bits = self._blocks(name, columns)
        rows, blocks = scales.shape
        block = codes.shape[1] // blocks
        group = next((size for size in _GROUPS if block % size == 0), None)
        if group is None or columns != codes.shape[1]:
            weight = codes.reshape(rows, blocks, block) * scales[..., None] + offsets[..., None]
            floats = mx.array(weight.reshape(rows, -1)[:, :columns]).astype(self._dtype)
            return FloatMatrix(floats, bias)
        return QuantizedMatrix(
            mx.array(_packed(codes, bits)),
            mx.array(np.repeat(scales, block // group, axis=1)).astype(self._dtype),
            mx.array(np.repeat(offsets, block // group, axis=1)).astype(self._dtype),
            bits,
            group,
            bias,
        )

    def _blocks(self, name: str, columns: int) -> tuple[Array, Array, Array, int]:
        """Codes uint8 [rows, blocks * block], scales and offsets float32 [rows, blocks], bits."""
        scales = self._scales(name)
        rows, blocks = scales.shape
        # An embedding that is only gathered from is stored as rows.
        stored = f"{name}.codes" if f"{name}.codes" in self._tensors else f"{name}.rows"
        data = self._read(stored).reshape(rows, -1)
        bits = data.shape[1] * 8 // (_block_size(columns, blocks) * blocks)
        zero_points: Array
        if f"{name}.zero_points" in self._tensors:
            zero_points = _unpacked(self._read(f"{name}.zero_points"), bits)[:, :blocks]
        else:
            zero_points = np.full((rows, blocks), 1 << (bits - 1), np.uint8)
        offsets = -scales * zero_points.astype(np.float32)
        if f"{name}.offsets.codes" in self._tensors:
            codes, steps, lows, _ = self._blocks(f"{name}.offsets", blocks)
            length = codes.shape[1] // steps.shape[1]
            values = codes.reshape(rows, -1, length) * steps[..., None] + lows[..., None]
            offsets = offsets + values.reshape(rows, -1)[:, :blocks]
        return _unpacked(data, bits), scales, offsets, bits

    def _scales(self, name: str) -> Array:
        if f"{name}.scale_codes" not in self._tensors:
            return self._read(f"{name}.scales")
        codes = self._read(f"{name}.scale_codes").astype(np.float32)
        return codes * self._read(f"{name}.scale_units")

    def _read(self, name: str) -> Array:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise EngineError(
                f"{self._path} has no weights {name!r}.",
                hint="Export the model again with this version of edgesdk.",
            )
        return tensor.numpy()


def _block_size(columns: int, blocks: int) -> int:
    """The power of two that cuts `columns` into `blocks`; MatMulNBits knows none below 16."""
    return max(16, 1 << (-(-columns // blocks) - 1).bit_length())


def _unpacked(data: Array, bits: int) -> Array:
    """The codes uint8 [rows, n * 8 / bits] of bytes [rows, n], low bits first."""
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(data.shape[0], -1)


def _packed(codes: Array, bits: int) -> Array:
    """Codes [rows, n] as uint32 words [rows, n * bits / 32], low bits first."""
    per_word = _WORD_BITS // bits
    words = np.zeros((codes.shape[0], codes.shape[1] // per_word), np.uint32)
    for place in range(per_word):
        words |= codes[:, place::per_word].astype(np.uint32) << np.uint32(bits * place)
    return words
