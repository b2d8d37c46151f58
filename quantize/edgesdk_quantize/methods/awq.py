"""Search per-channel scales that shield the channels with large inputs (AWQ).

Lin et al., 2023, arXiv:2306.00978. A column that is multiplied with s > 1 before rounding, while
its input is divided by s, comes out with an error smaller by s. Scales follow the inputs' size and
even out that of the weights,

    s = input ^ a / weight ^ b

(the second factor is AutoAWQ's "duo scaling", github.com/casper-hansen/AutoAWQ; there b = 1 - a):
columns of one block share a scale, so a large one is paid for by all. Taken are the exponents that
leave the least output error on the grids that will be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from edgesdk_quantize.formats.blocks import BlockFormat, Float32
from edgesdk_quantize.methods.grid import round_all, search_grid
from edgesdk_quantize.methods.moments import SecondMoments, output_error

_INPUT_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_WEIGHT_EXPONENTS = (0.0, 0.5, 1.0)
# Scales beyond these would cost the float32 norm gains their precision.
_SMALLEST, _LARGEST = 1e-3, 1e3
_TINY = np.float32(1e-12)
# So many rows of each matrix are tried.
_SAMPLED_ROWS = 64


def search_channel_scales(
    matrices: Sequence[Float32],
    fmt: BlockFormat,
    moments: SecondMoments,
    *,
    shared: tuple[int, int] | None = None,
) -> Float32:
    """Search the factors of the columns of matrices [N, K] that read the same input.

    Args:
        shared: (groups, size) where K is several groups, each of several times the same `size`
            channels that must have the same scale (the value channels of grouped-query
            attention); None = each channel has its own.

    Returns:
        float32 [K], geometric mean 1; all ones where no exponents beat plain columns.
    """
    inputs = _sizes(moments.importance, shared)
    energy = np.zeros(len(inputs), np.float32)
    for rows in matrices:
        energy += np.einsum("nk,nk->k", rows, rows)
    weights = _sizes(energy, shared)
    sampled = [rows[:: max(1, len(rows) // _SAMPLED_ROWS)] for rows in matrices]
    best, min_error = np.ones(len(inputs), np.float32), np.inf
    for of_input, of_weight in product(_INPUT_EXPONENTS, _WEIGHT_EXPONENTS):
        scales = _scales(of_input * np.log(inputs) - of_weight * np.log(weights))
        error = sum(_error(rows, scales, fmt, moments) for rows in sampled)
        if error < min_error:
            best, min_error = scales, error
    return best


def _sizes(squares: Float32, shared: tuple[int, int] | None) -> npt.NDArray[np.float64]:
    """The root of mean squares [K], in float64; of channels that share a scale, of all of them."""
    squares = np.maximum(squares, _TINY).astype(np.float64)
    if shared is not None:
        groups, width = shared
        heads = squares.reshape(groups, -1, width)
        mean = heads.mean(axis=1, keepdims=True)
        squares = np.broadcast_to(mean, heads.shape).reshape(-1)
    return np.sqrt(squares)


def _scales(logs: npt.NDArray[np.float64]) -> Float32:
    scales = np.exp(logs - logs.mean())
    clipped: Float32 = np.clip(scales, _SMALLEST, _LARGEST).astype(np.float32)
    return clipped


def _error(rows: Float32, scales: Float32, fmt: BlockFormat, moments: SecondMoments) -> float:
    scaled = rows * scales
    importance = (moments.importance / np.square(scales)).astype(np.float32)
    grid = search_grid(scaled, fmt, importance)
    points = round_all(grid, np.ascontiguousarray(scaled.T)).T
    return output_error(points / scales - rows, moments)
