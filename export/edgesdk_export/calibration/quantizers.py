"""Quantize a decoder layer by layer, with GPTQ or under importance weights.

GPTQ quantizes each layer on what the quantized layers before it really give. Before a layer is
quantized, the calibration text passes it once with its own weights, and the second moments of all
its inputs are summed up; then it passes the quantized layer, and the next one is calibrated on what
comes out (Frantar et al., 2022, arXiv:2210.17323). In memory are the text's hidden states, one
layer's weights, and one layer's moments. Importance weights need no text.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from edgesdk_quantize.formats import BlockFormat, PackedMatrix
from edgesdk_quantize.methods.gptq import RoundingOptions, quantize_calibrated
from edgesdk_quantize.methods.grid import quantize_searched
from edgesdk_quantize.methods.moments import SecondMomentsMeter

from edgesdk.errors import ExportError
from edgesdk_export.calibration.importance import ImportanceMatrix, gguf_names
from edgesdk_export.calibration.layer_runner import (
    TAP_OF,
    TAPS,
    QuantizedWeights,
    embed_windows,
    run_layer,
)
from edgesdk_export.onnx import FloatTensors, PartialModel, layer_model
from edgesdk_export.onnx.partial_models import tapped_layer_model
from edgesdk_export.onnx.source_blocks import preserved_blocks
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.resume import ResumeState
from edgesdk_export.weights import Decoder, Float32, require_finite


class SequentialQuantizer:
    """GPTQ over a stream of hidden states; a `LayerQuantizer`.

    Args:
        windows: the calibration text.
        matrix_formats: the format of each stored matrix of the layers.
        resume: where the hidden states between layers are on the disk, for a process that goes on.
    """

    def __init__(
        self,
        decoder: Decoder,
        windows: Windows,
        matrix_formats: Mapping[str, BlockFormat],
        rounding: RoundingOptions,
        resume: ResumeState | None = None,
    ) -> None:
        self._decoder = decoder
        self._windows = windows
        self._tensors = FloatTensors(decoder)
        self._matrix_formats = matrix_formats
        self._rounding = rounding
        self._resume_state = resume
        self._next = 0
        self._states: Float32 | None = None

    @property
    def method(self) -> str:
        """In words for the manifest."""
        tokens = self._windows.ids.size
        return f"GPTQ in activation order on {tokens} tokens, importance-weighted scales"

    @property
    def formats(self) -> str:
        """See `LayerQuantizer.formats`."""
        return format_names(self._matrix_formats)

    def layer(self, index: int) -> Mapping[str, PackedMatrix]:
        """See `LayerQuantizer.layer`."""
        if self._states is None:
            self._restore_states(index)
        for passed in range(self._next, index):
            self._quantize(passed)
        return self._quantize(index)

    def _restore_states(self, index: int) -> None:
        """The states before layer `index`, or before the last layer that has them on the disk."""
        for start in range(index, 0, -1):
            found = (
                None if self._resume_state is None else self._resume_state.load(_boundary(start))
            )
            if found is not None:
                self._next, self._states = start, found["states"]
                return
        self._states = embed_windows(self._decoder, self._windows)

    def _quantize(self, index: int) -> Mapping[str, PackedMatrix]:
        """Layer `index`, which is the next one, packed; the states pass it."""
        assert self._states is not None
        spec, at = self._decoder.spec, f"layers.{index}."
        part = tapped_layer_model(spec, self._tensors, index, TAPS)
        weights = {
            matrix: np.asarray(part.weights[f"{at}{matrix}.weight"], np.float32)
            for matrix in TAP_OF
        }
        for matrix, rows in weights.items():
            require_finite(f"{at}{matrix}", rows)
        meters = {tap: SecondMomentsMeter(weights[tap].shape[1]) for tap in TAPS}
        run_layer(part, self._states, {tap: meters[tap].add for tap in TAPS}, prepack=False)
        del part
        packed = {}
        for tap in TAPS:
            moments = meters.pop(tap).result()
            for matrix in [matrix for matrix in TAP_OF if TAP_OF[matrix] == tap]:
                name, rows = at + matrix, weights.pop(matrix)
                preserved = preserved_blocks(self._decoder, name, self._matrix_formats[name])
                packed[name] = preserved or quantize_calibrated(
                    rows, self._matrix_formats[name], moments, self._rounding
                )
        quantized: PartialModel = layer_model(spec, QuantizedWeights(self._tensors, packed), index)
        self._states = run_layer(quantized, self._states, prepack=True)
        self._next = index + 1
        if self._resume_state is not None:
            # Whether this layer is in the model's file will be known only when the next one is
            # asked for, so the states before it stay till then.
            self._resume_state.save(_boundary(index + 1), {"states": self._states})
            self._resume_state.drop(_boundary(index - 1))
        return packed


def _boundary(index: int) -> str:
    """The name under which the states before a layer are saved."""
    return f"states.{index}"


def format_names(matrix_formats: Mapping[str, BlockFormat]) -> str:
    """The formats' names, each once, joined by "+"."""
    return "+".join(sorted({fmt.name for fmt in matrix_formats.values()}))


class WeightedQuantizer:
    """Scales and zero-points searched under importance weights; a `LayerQuantizer`.

    Args:
        importance: of every layer's inputs, measured here or by llama.cpp.
        matrix_formats: the format of each stored matrix of the layers.

    Raises:
        ExportError: the importance matrix was made for another model.
    """

    def __init__(
        self,
        decoder: Decoder,
        importance: ImportanceMatrix,
        matrix_formats: Mapping[str, BlockFormat],
    ) -> None:
        self._decoder = decoder
        self._tensors = FloatTensors(decoder)
        self._matrix_formats = matrix_formats
        self._importance = _by_tap(decoder, importance)

    @property
    def method(self) -> str:
        """In words for the manifest."""
        return "scales and zero-points searched for the least error under importance weights"

    @property
    def formats(self) -> str:
        """See `LayerQuantizer.formats`."""
        return format_names(self._matrix_formats)

    def layer(self, index: int) -> Mapping[str, PackedMatrix]:
        """See `LayerQuantizer.layer`."""
        packed = {}
        for matrix, tap in TAP_OF.items():
            name = f"layers.{index}.{matrix}"
            rows = np.asarray(self._tensors[f"{name}.weight"].numpy(), np.float32)
            require_finite(name, rows)
            importance = self._importance[f"layers.{index}.{tap}"]
            preserved = preserved_blocks(self._decoder, name, self._matrix_formats[name])
            packed[name] = preserved or quantize_searched(
                rows, self._matrix_formats[name], importance
            )
        return packed


def _by_tap(decoder: Decoder, importance: ImportanceMatrix) -> dict[str, Float32]:
    found = {}
    for tap, names in gguf_names(decoder.spec).items():
        index, matrix = tap.removeprefix("layers.").split(".")
        part = {"qkv": "q"}.get(matrix, matrix)
        columns = decoder.weights[f"layers.{index}.{part}.weight"].shape[1]
        entry = importance.entries.get(names[0])
        if entry is None or len(entry.sums) != columns:
            have = "none" if entry is None else f"{len(entry.sums)} channels"
            raise ExportError(
                f"The importance matrix has {have} for {names[0]}; the model has {columns}.",
                hint="Use the importance matrix of this very model.",
            )
        found[tap] = entry.mean
    return found
