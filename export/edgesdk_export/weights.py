"""Weights that are read when they are asked for, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgesdk_export.spec import DecoderSpec

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


@dataclass(frozen=True)
class Decoder:
    """A decoder that can be exported: what it is, and its weights under canonical names.

    `weights` has exactly the names and shapes of `canonical_shapes(spec)`.
    """

    spec: DecoderSpec
    weights: Mapping[str, LazyTensor]


def read_whole(tensor: LazyTensor) -> Float32:
    """All of a tensor as float32; for small ones (norms, biases)."""
    return tensor.rows(0, tensor.shape[0])


def row_chunks(tensor: LazyTensor, *, multiple: int = 1) -> Iterator[Float32]:
    """A tensor in order, in chunks of about 16 MiB whose row counts are multiples of `multiple`
    (the last one excepted)."""
    per_row = int(np.prod(tensor.shape[1:], dtype=np.int64)) or 1
    step = max(multiple, _CHUNK_VALUES // per_row // multiple * multiple)
    for start in range(0, tensor.shape[0], step):
        yield tensor.rows(start, min(start + step, tensor.shape[0]))
