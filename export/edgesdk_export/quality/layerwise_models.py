"""Run a checkpoint or a written ONNX model one layer at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.onnx import (
    FloatTensors,
    PartialModel,
    embed_model,
    head_model,
    layer_model,
    read_stored,
)
from edgesdk_export.onnx.stored_weights import StoredTensors
from edgesdk_export.padded_heads import with_padded_heads
from edgesdk_export.quality.layerwise import Float32, LayerFunction
from edgesdk_export.weights import Decoder, LazyTensor


class LayerwiseOnnxModel:
    """The very bytes of a written model, run by the kernels that an app will run.

    Args:
        model_path: the graph's file, with its weights beside it. It is opened anew for every
            block, so that the pages of one block are unmapped before the next is read.
        read: reads its weights; another than `read_stored` where they are stored with less.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        model_path: Path,
        read: Callable[[Path], StoredTensors] = read_stored,
    ) -> None:
        self.layers, self.hidden_size, self.vocab_size = _sizes(spec)
        self._spec = spec
        self._path = model_path
        self._read = read

    def embed(self) -> LayerFunction:
        return _block(embed_model(self._spec, self._read(self._path)), prepack=True)

    def layer(self, index: int) -> LayerFunction:
        return _block(layer_model(self._spec, self._read(self._path), index), prepack=True)

    def head(self, start: int, stop: int) -> LayerFunction:
        part = head_model(self._spec, self._read(self._path), (start, stop))
        return _block(part, prepack=True)


class LayerwiseCheckpoint:
    """A checkpoint's own weights, computed in float32."""

    def __init__(self, decoder: Decoder) -> None:
        decoder = with_padded_heads(decoder)
        self.layers, self.hidden_size, self.vocab_size = _sizes(decoder.spec)
        self._decoder = decoder
        self._tensors = FloatTensors(decoder)

    def embed(self) -> LayerFunction:
        # Only the rows that occur are read: the whole matrix may be larger than everything else.
        spec, table = self._decoder.spec, self._decoder.weights["embed.weight"]
        return lambda ids: _gather(table, ids) * np.float32(spec.embedding_scale)

    # Packing float32 matrices would hold them twice, and pays off only over many calls.
    def layer(self, index: int) -> LayerFunction:
        return _block(layer_model(self._decoder.spec, self._tensors, index), prepack=False)

    def head(self, start: int, stop: int) -> LayerFunction:
        part = head_model(self._decoder.spec, self._tensors, (start, stop))
        return _block(part, prepack=False)


def _sizes(spec: DecoderSpec) -> tuple[int, int, int]:
    return spec.layers, spec.hidden_size, spec.vocab_size


def _gather(table: LazyTensor, ids: npt.NDArray[Any]) -> Float32:
    unique, places = np.unique(ids, return_inverse=True)
    rows = np.concatenate([table.rows(int(i), int(i) + 1) for i in unique])
    return rows[places.reshape(ids.shape)]


def _block(part: PartialModel, *, prepack: bool) -> LayerFunction:
    run = part.runner(prepack=prepack)
    return lambda values: np.asarray(run(values)[0])
