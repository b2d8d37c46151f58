"""Second moments of a layer's inputs, with every token's error counted as it will be felt."""

from __future__ import annotations

import numpy as np
from edgesdk_quantize.methods.moments import Moments, MomentsMeter

from edgesdk_export.weights import Float32

# These write into the hidden states; the inputs of the others come out of a norm.
_WRITERS = ("o", "down")


class LayerMoments:
    """A meter for one tap of a layer.

    Errors of o and down are added to the hidden states, and the next norm divides them by those
    states' size. A few tokens (attention sinks: Xiao et al., 2023, arXiv:2309.17453) have states
    and inputs hundreds of times as large as the others; without a weight of one over the states'
    mean square they alone would decide how every weight is rounded.
    """

    def __init__(self, tap: str, columns: int) -> None:
        self._meter = MomentsMeter(columns)
        self._relative = tap in _WRITERS

    def add(self, inputs: Float32, after: Float32) -> None:
        """Take in float32 [tokens, columns] and the states after the layer [tokens, hidden]."""
        if self._relative:
            size = np.sqrt(np.square(after).mean(axis=1, keepdims=True))
            inputs = inputs / np.maximum(size, np.float32(1e-12))
        self._meter.add(inputs)

    def result(self) -> Moments:
        """See `MomentsMeter.result`."""
        return self._meter.result()
