"""Rounding that lets later weights make up for the error of earlier ones (GPTQ).

Frantar et al., 2022, arXiv:2210.17323. With H the second moments of the inputs, the output error
of a row e = rounded - weights is e H e^T. Written in the form that Chee et al. prove equal (LDLQ,
2023, arXiv:2307.13304, theorem 6): with H = U U^T, U upper triangular, columns are rounded in
order, and column k is first moved by

    sum over i < k of (weights_i - rounded_i) U[i, k] / U[k, k]

so one Cholesky factor is all that is needed. Columns go by falling H[k, k] ("activation order"):
those that matter most are rounded while the others can still follow. Grids are fixed beforehand,
so the blocks that a kernel wants stay together whatever the order.
"""

from __future__ import annotations

import numpy as np

from edgesdk_quantize.formats.blocks import Float32
from edgesdk_quantize.methods.grid import Grid

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
