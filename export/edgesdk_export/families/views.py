"""Weights as the canonical names promise them, transformed while they are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_export.families.reading import Source
from edgesdk_export.weights import Float32, LazyTensor


@dataclass(frozen=True)
class WeightView:
    """A canonical weight over a tensor of the checkpoint; a `LazyTensor`."""

    tensor: LazyTensor
    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        start = self.source.start or 0
        stop = self.tensor.shape[0] if self.source.stop is None else self.source.stop
        return (stop - start, *self.tensor.shape[1:])

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Float32:
        """Rows [start, stop) of the canonical weight."""
        offset = self.source.start or 0
        size = self.source.interleaved_head
        if size is None:
            values = self.tensor.rows(offset + start, offset + stop)
        else:
            values = self._half_split_rows(start, stop, size)
        return values if self.source.add == 0 else values + np.float32(self.source.add)

    def _half_split_rows(self, start: int, stop: int, size: int) -> Float32:
        """Whole heads are read, since the rows of one head are shuffled among themselves: value
        `2 i + s` of a head in the interleaved order is value `s * size / 2 + i` in the other."""
        first, last = start // size * size, -(-stop // size) * size
        stored = self.tensor.rows(first, last)
        tail = stored.shape[1:]
        heads = stored.reshape(-1, size // 2, 2, *tail).swapaxes(1, 2)
        return np.ascontiguousarray(heads.reshape(-1, *tail)[start - first : stop - first])
