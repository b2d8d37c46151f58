"""The cosines and sines of the positions of one call, as graphs of fixed shapes take them."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from edgesdk.bundle import graph_io
from edgesdk.bundle.rope import rope_tables, switch_of
from edgesdk.bundle.spec import DecoderSpec, RopeSpec

# Positions of the first tables; longer texts double them.
_FIRST_LENGTH = 1024

Floats = npt.NDArray[np.floating]
_Tables = tuple[Floats, Floats]


class RopeRows:
    """Tables of all ropes of a decoder, shared by its states and grown with the longest text.

    Args:
        dtype: of the graph's inputs.
    """

    def __init__(self, spec: DecoderSpec, dtype: str) -> None:
        self._spec = spec
        self._dtype = np.dtype(dtype)
        self._ropes = graph_io.ropes(spec)
        self._length = 0
        self._tables: dict[str, _Tables] = {}
        self._growing = threading.Lock()

    def rows(self, rope: str, start: int, stop: int, *, total: int) -> _Tables:
        """Cosines and sines of positions [start, stop), [stop - start, head_size] each.

        Args:
            total: tokens of the whole text, by which "longrope" chooses its factors.
        """
        self._grow(total)
        switch = switch_of(self._ropes[rope], total)
        offset = 0 if switch is None else switch
        cos, sin = self._tables[rope]
        return cos[offset + start : offset + stop], sin[offset + start : offset + stop]

    def is_long(self, total: int) -> bool:
        """Whether a text of `total` tokens has the long factors of "longrope", at all positions."""
        return any(switch_of(rope, total) is not None for rope in self._ropes.values())

    def _grow(self, total: int) -> None:
        with self._growing:
            if total <= self._length:
                return
            length = max(total, min(max(_FIRST_LENGTH, 2 * total), self._spec.context_length))
            self._tables = {
                name: self._wide(rope, *rope_tables(rope, length))
                for name, rope in self._ropes.items()
            }
            self._length = length

    def _wide(self, rope: RopeSpec, cos: Floats, sin: Floats) -> _Tables:
        """Tables [rows, rotary_size / 2] as wide as a head."""
        half, size = rope.rotary_size // 2, self._spec.head_size
        wide_cos = np.ones((len(cos), size), self._dtype)
        wide_sin = np.zeros((len(sin), size), self._dtype)
        wide_cos[:, :half] = wide_cos[:, half : 2 * half] = cos
        wide_sin[:, :half], wide_sin[:, half : 2 * half] = -sin, sin
        return wide_cos, wide_sin
