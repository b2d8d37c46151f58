"""Coordinate descent on scales and codes, against the matrix's true outputs.

Given a rounded matrix, the output error e H e^T of each row (H: second moments of the inputs,
e = rounded - weights) is lowered block by block: the scale of a block moves to its closed-form
optimum with all codes fixed, then each code in turn to its own with everything else fixed. No step
can raise the error. The second half is the cyclic descent of QuantEase (Behdin et al., 2023,
arXiv:2309.01885).
"""

from __future__ import annotations

import numpy as np

from edgesdk_quantize.formats.blocks import Float32
from edgesdk_quantize.methods.grid import Grid

_TINY = np.float32(1e-30)


def refine(
    columns: Float32, grid: Grid, rounded: Float32, second: Float32, *, sweeps: int
) -> tuple[Grid, Float32]:
    """A better grid and better points of it, for weights [K, N] and `rounded` [K, N] on `grid`.

    Args:
        second: float32 [K, K], second moments of the inputs with a positive diagonal.
        sweeps: how often all blocks are gone through.
    """
    scales = grid.scales.copy()
    moving = Grid(grid.form, scales, grid.zeros)
    errors = rounded - columns
    size = grid.form.block
    for _ in range(sweeps):
        for block in range(len(scales)):
            part = slice(block * size, min((block + 1) * size, len(columns)))
            slopes = second[part] @ errors
            own = second[part, part]
            points = columns[part] + errors[part]
            _move_scale(scales[block], points, slopes, own)
            changed = points - columns[part] - errors[part]
            slopes += own @ changed
            errors[part] += changed
            _move_codes(moving, part.start, columns[part], errors[part], slopes, own)
    return moving, columns + errors


def _move_scale(scale: Float32, points: Float32, slopes: Float32, own: Float32) -> None:
    """Put a block's scale where its own output error is least; `scale` and `points` in place."""
    curvature = np.einsum("kn,kn->n", own @ points, points)
    slope = np.einsum("kn,kn->n", slopes, points)
    factor = 1 - slope / np.where(curvature > _TINY, curvature, np.inf)
    # A factor near or below zero means that the block is all but useless: leave it.
    factor = np.where((factor > 0.5) & (factor < 2), factor, np.float32(1)).astype(np.float32)
    scale *= factor
    points *= factor


def _move_codes(
    grid: Grid,
    start: int,
    columns: Float32,
    errors: Float32,
    slopes: Float32,
    own: Float32,
) -> None:
    """Round each column of a block anew where the others' errors ask for it; in place."""
    for k in range(len(columns)):
        wanted = columns[k] + errors[k] - slopes[k] / own[k, k]
        change = grid.round(start + k, wanted) - columns[k] - errors[k]
        errors[k] += change
        slopes += own[:, k, None] * change
