"""Compute cosine and sine tables of rotary position embedding with transformers' arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgesdk.bundle.rope import frequencies
from edgesdk.bundle.spec import RopeSpec

Float32 = npt.NDArray[np.float32]

_ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class RopeTable:
    """The layout of a table.

    Attributes:
        rows: positions in the table.
        columns: frequencies, rotary_size / 2.
        switch: None, or the context length past which a position p is found at row p + switch
            ("longrope": rows [0, switch) hold the short factors, the rest the long ones).
    """

    rows: int
    columns: int
    switch: int | None


def rope_table(rope: RopeSpec, context_length: int) -> RopeTable:
    """The layout of the table that serves positions [0, context_length)."""
    columns = rope.rotary_size // 2
    switch = rope.original_context if rope.kind == "longrope" else None
    if switch is not None and context_length > switch:
        return RopeTable(switch + context_length, columns, switch)
    return RopeTable(context_length, columns, None)


def rope_chunks(rope: RopeSpec, context_length: int) -> Iterator[tuple[Float32, Float32]]:
    """The table's cosines and sines, float32 [n, columns] each, a few thousand rows at a time."""
    table = rope_table(rope, context_length)
    factor = rope.attention_factor
    yield from _rotate(frequencies(rope, long=False), factor, table.switch or table.rows)
    if table.switch is not None:
        yield from _rotate(frequencies(rope, long=True), factor, context_length)


def _rotate(
    frequencies: npt.NDArray[np.float64], factor: float, rows: int
) -> Iterator[tuple[Float32, Float32]]:
    # Angles are float32 products, as in transformers: at long contexts a more exact angle would
    # be another angle than the model was trained with.
    single = frequencies.astype(np.float32)
    for start in range(0, rows, _ROWS_AT_A_TIME):
        positions = np.arange(start, min(start + _ROWS_AT_A_TIME, rows), dtype=np.float32)
        angles = positions[:, None] * single
        yield np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)
