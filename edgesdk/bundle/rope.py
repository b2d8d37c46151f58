"""Compute the frequencies of rotary position embedding, stretched as a spec says, and the tables
that attention looks them up in."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgesdk.bundle.spec import RopeSpec

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Graphs count tokens in int32, so that no text is longer.
MAX_POSITIONS = 2**31 - 1
_ROWS_AT_A_TIME = 8192


def frequencies(rope: RopeSpec, *, long: bool) -> Float64:
    """Radians that each pair of values turns per position, float64 [rotary_size / 2].

    Args:
        long: "longrope" has other factors past `original_context` tokens. False elsewhere.
    """
    exponents = np.arange(0, rope.rotary_size, 2, dtype=np.float64) / rope.rotary_size
    base: Float64 = rope.theta**-exponents
    if rope.kind == "linear":
        return base / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, base)
    if rope.kind == "yarn":
        return _yarn(rope, base)
    if rope.kind == "longrope":
        factors: Float64 = np.asarray(rope.long_factors if long else rope.short_factors)
        return base / factors
    return base


def switch_of(rope: RopeSpec, context_length: int) -> int | None:
    """The length past which all positions turn by the long factors; None where no text of the
    context gets there."""
    if rope.kind != "longrope":
        return None
    assert rope.original_context is not None
    beyond = min(context_length, MAX_POSITIONS) > rope.original_context
    return rope.original_context if beyond else None


def rope_tables(rope: RopeSpec, length: int) -> tuple[Float32, Float32]:
    """Cosines and sines for texts of up to `length` tokens, float32 [rows, rotary_size / 2].

    Position p is row p. Where `switch_of(rope, length)` is a number s, the first s rows have the
    short factors, and in texts longer than s position p is row s + p.
    """
    switch = switch_of(rope, length)
    parts = [(frequencies(rope, long=False), length if switch is None else switch)]
    if switch is not None:
        parts.append((frequencies(rope, long=True), length))
    tables = np.empty((2, sum(rows for _, rows in parts), rope.rotary_size // 2), np.float32)
    start = 0
    for turned, rows in parts:
        _fill(tables[:, start : start + rows], turned.astype(np.float32))
        start += rows
    tables *= np.float32(rope.attention_factor)
    return tables[0], tables[1]


def _fill(tables: Float32, turned: Float32) -> None:
    # Angles are float32 products, as in transformers: at long contexts a more exact angle would
    # be another angle than the model was trained with.
    for start in range(0, tables.shape[1], _ROWS_AT_A_TIME):
        stop = min(start + _ROWS_AT_A_TIME, tables.shape[1])
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * turned
        np.cos(angles, out=tables[0, start:stop])
        np.sin(angles, out=tables[1, start:stop])


def _llama3(rope: RopeSpec, base: Float64) -> Float64:
    """Long wavelengths are stretched, short ones kept, those between blended (Llama 3.1)."""
    assert rope.original_context is not None
    turns = rope.original_context * base / (2 * math.pi)
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(keep, 0, 1)
    return (1 - keep) * base / rope.factor + keep * base


def _yarn(rope: RopeSpec, base: Float64) -> Float64:
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
