"""Weights that make up for what the quantized layers before have lost.

GPTQ brings a matrix as near as it can to its own outputs on inputs that have gone wrong already. A
matrix W that writes into the residual stream can do better: of the stream x W^T + r it is asked to
give back what the original stream has and this one lacks, m, which is a least-squares problem,

    W* = W + M^T (H + damping)^-1     with H = mean x^T x, M = mean x^T m

and W* is what is rounded. Li et al., 2025, arXiv:2504.02692 (GPTAQ) and Arai and Ichikawa, 2025,
arXiv:2504.09629 (QEP) correct each matrix for the loss of its own inputs; here the loss of the sum
is taken, so that errors of all matrices before are made up for, not only those of one path.
"""

from __future__ import annotations

import numpy as np

from edgesdk_quantize.formats.blocks import Float32
from edgesdk_quantize.methods.gptq import damped
from edgesdk_quantize.methods.moments import Moments


class ShortfallMeter:
    """Sums up M, window by window.

    Args:
        columns: of the matrix, K.
        rows: of the matrix, N.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self._sum = np.zeros((columns, rows), np.float32)
        self._tokens = 0

    def add(self, inputs: Float32, missing: Float32) -> None:
        """Take in x [tokens, K] and m [tokens, N], float32."""
        self._sum += inputs.T @ missing
        self._tokens += len(inputs)

    def result(self) -> Float32:
        """The mean, float32 [K, N]."""
        return self._sum / np.float32(max(self._tokens, 1))


def compensated(
    rows: Float32, moments: Moments, shortfall: Float32, *, damping: float = 0.1
) -> Float32:
    """The weights [N, K] that bring the stream nearest to the original's.

    Args:
        shortfall: float32 [K, N], see `ShortfallMeter`.
        damping: part of the mean diagonal that is added to H: how strongly weights are held where
            they are.
    """
    result = rows.copy()
    for part, second in moments.parts():
        found = np.linalg.solve(damped(second, damping), shortfall[part])
        result[:, part] += found.T.astype(np.float32)
    return result
