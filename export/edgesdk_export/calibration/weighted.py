"""Quantize layer by layer with an importance matrix: no text has to run for this."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from edgesdk_quantize.formats import BlockFormat, Packed
from edgesdk_quantize.methods.search import quantize_searched

from edgesdk.errors import ExportError
from edgesdk_export.calibration.importance import ImportanceMatrix, gguf_names
from edgesdk_export.calibration.kept_blocks import kept_blocks
from edgesdk_export.calibration.running import TAP_OF
from edgesdk_export.calibration.sequential import check_weights, format_names
from edgesdk_export.onnx import FloatTensors
from edgesdk_export.weights import Decoder, Float32


class WeightedQuantizer:
    """Scales and zero-points searched under importance weights; a `LayerQuantizer`.

    Args:
        importance: of every layer's inputs, measured here or by llama.cpp.
        forms: the format of each stored matrix of the layers.

    Raises:
        ExportError: the importance matrix was made for another model.
    """

    def __init__(
        self, decoder: Decoder, importance: ImportanceMatrix, forms: Mapping[str, BlockFormat]
    ) -> None:
        self._decoder = decoder
        self._tensors = FloatTensors(decoder)
        self._forms = forms
        self._importance = _by_tap(decoder, importance)

    @property
    def method(self) -> str:
        """In words for the manifest."""
        return "scales and zero-points searched for the least error under importance weights"

    @property
    def formats(self) -> str:
        """See `LayerQuantizer.formats`."""
        return format_names(self._forms)

    def layer(self, index: int) -> Mapping[str, Packed]:
        """See `LayerQuantizer.layer`."""
        packed = {}
        for matrix, tap in TAP_OF.items():
            name = f"layers.{index}.{matrix}"
            rows = np.asarray(self._tensors[f"{name}.weight"].numpy(), np.float32)
            check_weights(name, rows)
            importance = self._importance[f"layers.{index}.{tap}"]
            kept = kept_blocks(self._decoder, name, self._forms[name])
            packed[name] = kept or quantize_searched(rows, self._forms[name], importance)
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
