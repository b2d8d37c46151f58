"""Sum up the second moments of the inputs of a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgesdk_quantize.formats.blocks import Float32

# Channels further apart than this are taken as unrelated, so that memory grows with the width of
# a matrix and not with its square: 9,216 x 9,216 float32 are 340 MB.
_MAX_SLICE = 9_216
# Slices begin where blocks of every format do.
_MULTIPLE = 128


@dataclass(frozen=True)
class SecondMoments:
    """Mean second moments of the inputs x of a matrix [N, K] over calibration tokens.

    Attributes:
        tokens: how many inputs were averaged.
        slices: the mean of x x^T (X^T X / tokens) as float32 [n, n] for each `moment_slices(K)`.
    """

    tokens: int
    slices: tuple[Float32, ...]

    @property
    def importance(self) -> Float32:
        """float32 [K]: the mean square of each channel."""
        return np.concatenate([np.diagonal(second) for second in self.slices])

    def parts(self) -> Iterator[tuple[slice, Float32]]:
        """Channels and their second moments, slice by slice."""
        start = 0
        for second in self.slices:
            yield slice(start, start + len(second)), second
            start += len(second)


class SecondMomentsMeter:
    """Sums up second moments, window by window.

    Args:
        columns: K.
    """

    def __init__(self, columns: int) -> None:
        self._parts = moment_slices(columns)
        self._sums = [np.zeros((part.stop - part.start,) * 2, np.float32) for part in self._parts]
        self._tokens = 0

    def add(self, inputs: Float32) -> None:
        """Take in float32 [tokens, K]."""
        self._tokens += len(inputs)
        for part, total in zip(self._parts, self._sums, strict=True):
            mine = inputs[:, part]
            total += mine.T @ mine

    def result(self) -> SecondMoments:
        """The mean; call it once, after the last window."""
        for total in self._sums:
            total /= np.float32(max(self._tokens, 1))
        return SecondMoments(self._tokens, tuple(self._sums))


def moment_slices(columns: int) -> list[slice]:
    """K channels as the fewest equal slices that are narrow enough."""
    count = -(-columns // _MAX_SLICE)
    width = -(-columns // count // _MULTIPLE) * _MULTIPLE if count > 1 else columns
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def output_error(difference: Float32, moments: SecondMoments) -> float:
    """The mean squared norm of (difference x), for a difference of two matrices [N, K]."""
    return sum(
        float(np.einsum("nk,nk->", difference[:, part] @ second, difference[:, part]))
        for part, second in moments.parts()
    )
