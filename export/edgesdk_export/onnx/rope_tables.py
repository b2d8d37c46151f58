"""Compute cosine and sine tables of rotary position embedding with transformers' arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    if rope.kind != "longrope":
        yield from _rotate(_frequencies(rope), rope.attention_factor, table.rows)
        return
    base = _base_frequencies(rope)
    short = base / np.asarray(rope.short_factors)
    yield from _rotate(short, rope.attention_factor, table.switch or table.rows)
    if table.switch is not None:
        long = base / np.asarray(rope.long_factors)
        yield from _rotate(long, rope.attention_factor, context_length)


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


def _base_frequencies(rope: RopeSpec) -> npt.NDArray[np.float64]:
    exponents = np.arange(0, rope.rotary_size, 2, dtype=np.float64) / rope.rotary_size
    frequencies: npt.NDArray[np.float64] = rope.theta**-exponents
    return frequencies


def _frequencies(rope: RopeSpec) -> npt.NDArray[np.float64]:
    base = _base_frequencies(rope)
    if rope.kind == "linear":
        return base / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, base)
    if rope.kind == "yarn":
        return _yarn(rope, base)
    return base


def _llama3(rope: RopeSpec, base: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Long wavelengths are stretched, short ones kept, those between blended (Llama 3.1)."""
    assert rope.original_context is not None
    turns = rope.original_context * base / (2 * math.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0, 1)
    return (1 - keep) * base / rope.factor + keep * base


def _yarn(rope: RopeSpec, base: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Peng et al., 2023, arXiv:2309.00071, section 3.2 ("NTK-by-parts")."""
    assert rope.original_context is not None
    context, size = rope.original_context, rope.rotary_size

    def dimension(turns: float) -> float:
        return size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension(rope.beta_fast)), 0)
    high = min(math.ceil(dimension(rope.beta_slow)), size - 1)
    ramp = (np.arange(size // 2) - low) / max(high - low, 0.001)
    stretch = np.clip(ramp, 0, 1)
    return stretch * base / rope.factor + (1 - stretch) * base
