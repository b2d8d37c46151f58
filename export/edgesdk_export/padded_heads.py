"""Give a decoder heads of a size that onnxruntime's attention runs, without changing its function.

onnxruntime takes heads of a multiple of 8 values. Zeros behind the values of each query and key add
nothing to their products; zeros behind those of each value head come out as zeros, which meet zeros
in the output matrix. Rope turns the leading values only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgesdk_export.weights import Decoder, Float32, LazyTensor

_MULTIPLE = 8
# Vectors and matrices with a row for each value of the heads; matrices with a column for each.
_ROWS, _COLUMNS, _NORMS = ("q", "k", "v"), ("o",), ("q_norm", "k_norm")


def padded_size(head_size: int) -> int:
    """The size of heads in an ONNX graph."""
    return -(-head_size // _MULTIPLE) * _MULTIPLE


def with_padded_heads(decoder: Decoder) -> Decoder:
    """The decoder itself where its heads can run, else one whose heads end with zeros.

    An RMS norm over a padded head divides by more values than there are, which its gain makes up
    for. Its epsilon then counts a little less, a tenth at most.
    """
    spec = decoder.spec
    size, padded = spec.head_size, padded_size(spec.head_size)
    if size == padded:
        return decoder
    weights: dict[str, LazyTensor] = {}
    for name, tensor in decoder.weights.items():
        part, _, kind = name.rpartition(".")
        part = part.rpartition(".")[2]
        if part in _ROWS:
            weights[name] = _PaddedRows(tensor, size, padded)
        elif part in _NORMS:
            weights[name] = _PaddedRows(tensor, size, padded, math.sqrt(size / padded))
        elif part in _COLUMNS and kind == "weight":
            weights[name] = _PaddedColumns(tensor, size, padded)
        else:
            weights[name] = tensor
    return Decoder(replace(spec, head_size=padded), weights)


def without_padding(columns: Mapping[str, Float32], decoder: Decoder) -> dict[str, Float32]:
    """Vectors over the columns of padded matrices, by canonical tensor name, without the values of
    columns that are zeros: what was measured on `with_padded_heads(decoder)`."""
    size = decoder.spec.head_size
    padded = padded_size(size)
    return {
        name: values.reshape(-1, padded)[:, :size].reshape(-1)
        if size != padded and name.endswith("attn_output.weight")
        else values
        for name, values in columns.items()
    }


@dataclass(frozen=True)
class _PaddedRows:
    """A tensor with `size` rows for each head, and zeros behind them up to `padded`."""

    tensor: LazyTensor
    size: int
    padded: int
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        rows, *rest = self.tensor.shape
        return (rows // self.size * self.padded, *rest)

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Float32:
        head, place = np.divmod(np.arange(start, stop), self.padded)
        real = place < self.size
        values = np.zeros((stop - start, *self.tensor.shape[1:]), np.float32)
        if real.any():
            wanted = (head * self.size + place)[real]
            first = int(wanted[0])
            found = self.tensor.rows(first, int(wanted[-1]) + 1)
            values[real] = found[wanted - first] * np.float32(self.scale)
        return values


@dataclass(frozen=True)
class _PaddedColumns:
    """A matrix with `size` columns for each head, and zeros behind them up to `padded`."""

    tensor: LazyTensor
    size: int
    padded: int

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.tensor.shape
        return (rows, columns // self.size * self.padded)

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Float32:
        values = self.tensor.rows(start, stop).reshape(stop - start, -1, self.size)
        padding = ((0, 0), (0, 0), (0, self.padded - self.size))
        return np.pad(values, padding).reshape(stop - start, -1)
