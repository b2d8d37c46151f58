"""Read a written `.tflite` back as a decoder, with the values that its kernels compute with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats.litert import INT4_LITERT, INT8_LITERT
from edgesdk_quantize.formats.qdq import QdqWeights

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk_export.litert.flatbuffer import WeightPlace, stored_weights
from edgesdk_export.weights import Decoder, Float32


def stored_decoder(path: Path, spec: DecoderSpec) -> Decoder:
    """The weights of a file that `write_tflite` wrote for `spec`; they stay on the disk."""
    places = stored_weights(np.memmap(path, np.uint8, "r"))
    return Decoder(
        spec, {name: _StoredTensor(path, name, places) for name in canonical_shapes(spec)}
    )


@dataclass(frozen=True)
class _StoredTensor:
    """Implements `LazyTensor`."""

    path: Path
    name: str
    places: Mapping[str, WeightPlace]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.places[self.name].shape

    @property
    def dtype(self) -> str:
        return self.places[self.name].dtype

    def rows(self, start: int, stop: int) -> Float32:
        place = self.places[self.name]
        if place.dtype == "float32":
            values: Float32 = self._numbers(self.name, np.float32)[start:stop].copy()
            return values
        if place.scales is not None:
            codes = self._numbers(self.name, np.int8)[start:stop]
            return INT8_LITERT.dequantize(QdqWeights(codes, place.scales[start:stop]))
        packed = self._bytes(self.name).reshape(self.shape[0], -1)[start:stop]
        # Shifted up and down again, so that the sign of four bits becomes that of eight.
        halves = np.stack([packed << 4, packed & 0xF0], axis=-1).view(np.int8) >> 4
        scales = self._numbers(str(place.block_scales), np.float16)[start:stop]
        codes = halves.reshape(len(packed), -1)
        return INT4_LITERT.dequantize(QdqWeights(codes, scales.astype(np.float32)))

    def _numbers(self, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return self._bytes(name).view(dtype).reshape(self.places[name].shape)

    def _bytes(self, name: str) -> npt.NDArray[np.uint8]:
        place = self.places[name]
        return np.memmap(self.path, np.uint8, "r", place.offset, (place.size,))
