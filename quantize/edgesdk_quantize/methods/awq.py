"""Per-channel scales that shield the channels with large inputs (AWQ).

Lin et al., 2023, arXiv:2306.00978. A column that is multiplied with s > 1 before rounding, while
its input is divided by s, comes out with an error smaller by s. Scales follow the inputs' size,
s = size ^ a, and the exponent is the one that leaves the least output error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgesdk_quantize.formats.blocks import BlockFormat, Float32
from edgesdk_quantize.methods.grid import round_all
from edgesdk_quantize.methods.moments import Moments, output_error
from edgesdk_quantize.methods.search import range_grid

_EXPONENTS = tuple(step / 10 for step in range(11))
# Scales beyond these would cost the float32 norm gains their precision.
_SMALLEST, _LARGEST = 1e-3, 1e3
# So many rows of each matrix are tried.
_SAMPLED_ROWS = 192


def search_channel_scales(
    matrices: Sequence[Float32],
    form: BlockFormat,
    moments: Moments,
    *,
    shared: tuple[int, int] | None = None,
) -> Float32:
    """What to multiply the columns of matrices [N, K] with that read the same input.

    Args:
        shared: (groups, size) where K is several groups, each of several times the same `size`
            channels that must have the same scale (the value channels of grouped-query
            attention); None = each channel has its own.

    Returns:
        float32 [K], geometric mean 1; all ones where no exponent beats plain rounding.
    """
    size = np.sqrt(np.maximum(moments.importance, np.float32(1e-12)))
    if shared is not None:
        groups, width = shared
        heads = np.square(size).reshape(groups, -1, width)
        mean = np.sqrt(heads.mean(axis=1, keepdims=True))
        size = np.broadcast_to(mean, heads.shape).reshape(-1)
    sampled = [rows[:: max(1, len(rows) // _SAMPLED_ROWS)] for rows in matrices]
    best, least = np.ones(len(size), np.float32), np.inf
    for exponent in _EXPONENTS:
        scales = _scales(size, exponent)
        error = sum(_error(rows, scales, form, moments) for rows in sampled)
        if error < least:
            best, least = scales, error
    return best


def _scales(size: Float32, exponent: float) -> Float32:
    logs = exponent * np.log(size.astype(np.float64))
    scales = np.exp(logs - logs.mean())
    clipped: Float32 = np.clip(scales, _SMALLEST, _LARGEST).astype(np.float32)
    return clipped


def _error(rows: Float32, scales: Float32, form: BlockFormat, moments: Moments) -> float:
    scaled = rows * scales
    points = round_all(range_grid(scaled, form), np.ascontiguousarray(scaled.T)).T
    return output_error(points / scales - rows, moments)
