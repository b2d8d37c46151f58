"""Compute the frequencies of rotary position embedding, stretched as a spec says."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgesdk.bundle.spec import RopeSpec

Float64 = npt.NDArray[np.float64]


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
