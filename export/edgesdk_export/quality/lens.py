"""What two models would say after each layer, were it their last: KL divergence by layer.

The states after a layer go through the reference's own final norm and head (the "logit lens" of
nostalgebraist 2020). Both models' go through the same one, so a head that was quantized has no
share in it, and the figures of neighbouring layers compare.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.divergence import DivergenceMeter

Float32 = npt.NDArray[np.float32]
States = npt.NDArray[np.generic]


class LayerLens:
    """Looks at a few positions after each layer, and reads them all when the head is there.

    Args:
        candidates: how many models stand beside the reference.
        positions: how many are looked at, evenly spread over the windows; all where there are
            fewer.
    """

    def __init__(self, candidates: int, positions: int) -> None:
        self._positions = positions
        self._reference: list[Float32] = []
        self._candidates: list[list[Float32]] = [[] for _ in range(candidates)]
        self._meters: list[list[DivergenceMeter]] = [[] for _ in range(candidates)]

    def look(self, reference: States, candidates: list[States]) -> None:
        """The next layer's states, float32 [windows, 1, length, hidden] of each model."""
        self._reference.append(self._sample(reference))
        for seen, meters, states in zip(self._candidates, self._meters, candidates, strict=True):
            seen.append(self._sample(states))
            # No token is asked for here, only how far the distributions are apart.
            meters.append(DivergenceMeter(np.zeros(len(seen[-1]), np.int64)))

    def read(self, head: Callable[[States], Float32]) -> None:
        """Through the next slice of the reference's head, states [1, n, hidden] to logits."""
        for index, states in enumerate(self._reference):
            expected = head(states[None])[0]
            for seen, meters in zip(self._candidates, self._meters, strict=True):
                meters[index].add(expected, head(seen[index][None])[0])

    def result(self) -> list[tuple[float, ...]]:
        """Of each candidate, by layer: mean KL(reference || candidate) in nats per position."""
        return [
            tuple(float(meter.result().kl.mean()) for meter in meters) for meters in self._meters
        ]

    def _sample(self, states: States) -> Float32:
        rows = states.reshape(-1, states.shape[-1])
        count = min(self._positions, len(rows))
        chosen = np.linspace(0, len(rows) - 1, count).round().astype(np.int64)
        return np.asarray(rows[chosen], np.float32)
