"""Run text through one layer of a decoder, and observe the inputs of its matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from edgesdk_quantize.formats import PackedMatrix

from edgesdk_export.onnx import PartialModel
from edgesdk_export.onnx.graph_builder import Weights
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint
from edgesdk_export.weights import Decoder, Float32

# Where a layer's text is looked at: before these stored matrices. `up` has the input of `gate`.
TAPS = ("qkv", "o", "gate", "down")
TAP_OF = {"qkv": "qkv", "o": "o", "gate": "gate", "up": "gate", "down": "down"}

# Takes the input of one tap, float32 [tokens, columns].
Observer = Callable[[Float32], None]


def embed_windows(decoder: Decoder, windows: Windows) -> Float32:
    """The hidden states before the first layer, float32 [windows, length, hidden]."""
    embed = LayerwiseCheckpoint(decoder).embed()
    return np.concatenate([embed(row[None]) for row in windows.ids])


class SquaresMeter:
    """Sums of squares by channel, in float64: small ones are not lost beside large ones."""

    def __init__(self) -> None:
        self._sums: npt.NDArray[np.float64] = np.zeros(())
        self._tokens = 0

    def add(self, inputs: Float32) -> None:
        """Take in float32 [tokens, columns]."""
        self._sums = self._sums + np.einsum("tk,tk->k", inputs, inputs, dtype=np.float64)
        self._tokens += len(inputs)

    @property
    def sums(self) -> Float32:
        """float32 [columns]."""
        return self._sums.astype(np.float32)

    @property
    def mean(self) -> Float32:
        """float32 [columns]: the mean square of each channel."""
        return (self._sums / max(self._tokens, 1)).astype(np.float32)


def run_layer(
    part: PartialModel,
    states: Float32,
    observers: Mapping[str, Observer] | None = None,
    *,
    prepack: bool,
) -> Float32:
    """Run every window of hidden states float32 [windows, length, hidden] through one layer.

    Args:
        part: a layer whose graph has the observers' taps, in their order.
        prepack: see `PartialModel.runner`.

    Returns:
        The states after the layer, in a new array.
    """
    run = part.runner(prepack=prepack)
    after = np.empty_like(states)
    for index in range(len(states)):
        after[index : index + 1], *inputs = run(states[index : index + 1])
        for observe, values in zip((observers or {}).values(), inputs, strict=True):
            observe(values.reshape(-1, values.shape[-1]))
    return after


class QuantizedWeights:
    """A decoder's weights, of which some matrices are quantized; the rest are its own."""

    def __init__(self, weights: Weights, packed: Mapping[str, PackedMatrix]) -> None:
        self._weights = weights
        self._matrices = packed.keys()
        self._tensors = {
            name: tensor
            for matrix, pack in packed.items()
            for name, tensor in _tensors(matrix, pack).items()
        }

    def __contains__(self, name: object) -> bool:
        if name in self._tensors:
            return True
        matrix, _, kind = str(name).rpartition(".")
        return not (kind == "weight" and matrix in self._matrices) and name in self._weights

    def __getitem__(self, name: str) -> ir.TensorProtocol:
        return self._tensors[name] if name in self._tensors else self._weights[name]


def _tensors(matrix: str, packed: PackedMatrix) -> dict[str, ir.TensorProtocol]:
    arrays: dict[str, npt.NDArray[Any] | None] = {
        "codes": packed.data,
        "scales": packed.scales,
        "zero_points": packed.zero_points,
    }
    tensors: dict[str, ir.TensorProtocol] = {
        f"{matrix}.{kind}": ir.tensor(array, name=f"{matrix}.{kind}")
        for kind, array in arrays.items()
        if array is not None
    }
    if packed.offsets is not None:
        tensors |= _tensors(f"{matrix}.offsets", packed.offsets)
    return tensors
