"""Quantize a matrix with GPTQ: later weights make up for the error of earlier ones.

Frantar et al., 2022, arXiv:2210.17323. With H the second moments of the inputs, the output error
of a row e = rounded - weights is e H e^T. Written in the form that Chee et al. prove equal (LDLQ,
2023, arXiv:2307.13304, theorem 6): with H = U U^T, U upper triangular, columns are rounded in
order, and column k is first moved by

    sum over i < k of (weights_i - rounded_i) U[i, k] / U[k, k]

so one Cholesky factor is all that is needed. Columns go by falling H[k, k] ("activation order"):
those that matter most are rounded while the others can still follow. Grids are fixed beforehand,
so the blocks that a kernel wants stay together whatever the order.

Coordinate descent may follow: the scale of a block moves to its closed-form optimum with all codes
fixed, then each code in turn to its own with everything else fixed. No step can raise the error.
The second half is the cyclic descent of QuantEase (Behdin et al., 2023, arXiv:2309.01885).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import BlockFormat, Float32, PackedMatrix, check_finite
from edgesdk_quantize.methods.grid import Grid, pack_rounded, search_grid
from edgesdk_quantize.methods.moments import SecondMoments

# Second moments of n tokens are off by chance as columns / n; the diagonal gets as much in turn.
_CHANCE_DAMPING = 1.5


@dataclass(frozen=True)
class RoundingOptions:
    """Settings for rounding with second moments.

    Attributes:
        damping: part of the mean diagonal that is added to all second moments, against what the
            calibration text says by chance; more where the tokens are few for the columns.
        sweeps: of coordinate descent over scales and codes after GPTQ; 0 = none.
    """

    damping: float = 0.1
    sweeps: int = 0


def quantize_calibrated(
    rows: Float32, fmt: BlockFormat, moments: SecondMoments, rounding: RoundingOptions
) -> PackedMatrix:
    """A searched grid, GPTQ on it, and coordinate descent from there.

    Args:
        rows: float32 [N, K].

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    check_finite(rows)
    grid = search_grid(rows, fmt, moments.importance)
    columns = np.ascontiguousarray(rows.T)
    rounded = np.empty_like(columns)
    scales = grid.scales.copy()
    for part, second in moments.parts():
        blocks = slice(part.start // fmt.block, -(-part.stop // fmt.block))
        own = Grid(fmt, grid.scales[blocks], grid.zeros[blocks])
        damping = max(rounding.damping, _CHANCE_DAMPING * len(second) / max(moments.tokens, 1))
        points = gptq_round(columns[part], own, second, damping=damping)
        if rounding.sweeps:
            own, points = refine(
                columns[part], own, points, damped(second, damping), sweeps=rounding.sweeps
            )
        scales[blocks], rounded[part] = own.scales, points
    return pack_rounded(Grid(fmt, scales, grid.zeros, grid.offsets), rounded)


# Columns whose corrections among each other are done one by one; the others by matrix products.
_BATCH = 64
_DAMPING = 0.1


def gptq_round(
    columns: Float32, grid: Grid, second: Float32, *, damping: float = _DAMPING
) -> Float32:
    """Round weights [K, N] to the grid.

    Args:
        columns: the transposed matrix, float32 [K, N].
        second: float32 [K, K], second moments of the inputs, to any scale.
        damping: added to the diagonal, as a part of its mean.

    Returns:
        Points of the grid, float32 [K, N].
    """
    order = np.argsort(-np.diagonal(second), kind="stable")
    upper = _factor(damped(second, damping)[np.ix_(order, order)])
    upper /= np.diagonal(upper)
    rounded = np.empty_like(columns)
    # Errors so far in the order of rounding: what the weights were less what they became.
    errors = np.zeros_like(columns)
    for start in range(0, len(order), _BATCH):
        stop = min(start + _BATCH, len(order))
        moves = upper[:start, start:stop].T @ errors[:start]
        for k in range(start, stop):
            column = int(order[k])
            move = moves[k - start] + upper[start:k, k] @ errors[start:k]
            rounded[column] = grid.round(column, columns[column] + move)
            errors[k] = columns[column] - rounded[column]
    return rounded


def damped(second: Float32, damping: float) -> Float32:
    """`second` with a part of its mean diagonal added to the diagonal; a channel that was never
    seen gets a diagonal at all."""
    result: Float32 = second.copy()
    mean = float(np.diagonal(second).mean()) or 1.0
    result[np.diag_indices_from(result)] += np.float32(damping * mean)
    return result


def _factor(second: Float32) -> Float32:
    """Upper triangular U with U U^T = second: the Cholesky factor from the last column on."""
    try:
        lower = np.linalg.cholesky(second[::-1, ::-1])
    except np.linalg.LinAlgError:
        # Too few tokens for float32: what rounding took from the diagonal is given back.
        lower = np.linalg.cholesky(damped(second, 0.1)[::-1, ::-1])
    return np.ascontiguousarray(lower[::-1, ::-1])


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
    moving = Grid(grid.fmt, scales, grid.zeros)
    errors = rounded - columns
    size = grid.fmt.block
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
