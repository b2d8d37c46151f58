"""One matrix, quantized by what is known of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import BlockFormat, Float32, Packed, check_finite
from edgesdk_quantize.methods.gptq import damped, gptq_round
from edgesdk_quantize.methods.grid import Grid, pack_rounded
from edgesdk_quantize.methods.moments import Moments
from edgesdk_quantize.methods.refine import refine
from edgesdk_quantize.methods.search import search_grid

# Second moments of n tokens are off by chance as columns / n; the diagonal gets as much in turn.
_BY_CHANCE = 1.5


@dataclass(frozen=True)
class Rounding:
    """How to round with second moments at hand.

    Attributes:
        damping: part of the mean diagonal that is added to all second moments, against what the
            calibration text says by chance; more where the tokens are few for the columns.
        sweeps: of coordinate descent over scales and codes after GPTQ; 0 = none.
    """

    damping: float = 0.1
    sweeps: int = 0


def quantize_calibrated(
    rows: Float32, form: BlockFormat, moments: Moments, rounding: Rounding
) -> Packed:
    """A searched grid, GPTQ on it, and coordinate descent from there.

    Args:
        rows: float32 [N, K].

    Raises:
        ValueError: a weight is NaN or infinite.
    """
    check_finite(rows)
    grid = search_grid(rows, form, moments.importance)
    columns = np.ascontiguousarray(rows.T)
    rounded = np.empty_like(columns)
    scales = grid.scales.copy()
    for part, second in moments.parts():
        blocks = slice(part.start // form.block, -(-part.stop // form.block))
        own = Grid(form, grid.scales[blocks], grid.zeros[blocks])
        damping = max(rounding.damping, _BY_CHANCE * len(second) / max(moments.tokens, 1))
        points = gptq_round(columns[part], own, second, damping=damping)
        if rounding.sweeps:
            own, points = refine(
                columns[part], own, points, damped(second, damping), sweeps=rounding.sweeps
            )
        scales[blocks], rounded[part] = own.scales, points
    return pack_rounded(Grid(form, scales, grid.zeros, grid.offsets), rounded)
