"""Run models side by side, one layer of each at a time, and compare their logits.

Hidden states of all windows stay in memory, weights of one layer do: a model far larger than memory
is measured exactly, with the kernels that will run it. Divergence by layer reads the states after
each layer with the reference's own final norm and head (the "logit lens" of nostalgebraist, 2020),
so a quantized head has no share in it, and the figures of neighbouring layers compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.divergence import Divergence, DivergenceMeter, join

from edgesdk_export.quality.evaluation_text import Windows

Float32 = npt.NDArray[np.float32]

# Embeds ids [1, length], or maps hidden states [1, length, hidden] to hidden states or logits.
LayerFunction = Callable[[npt.NDArray[np.generic]], Float32]

# Head weights held at once, in float32 bytes; the vocabulary is cut into slices of this size.
_HEAD_BYTES = 32 * 2**20


class LayerwiseModel(Protocol):
    """A decoder that runs piece by piece; a block is freed before the next is asked for."""

    @property
    def layers(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def embed(self) -> LayerFunction:
        """Token ids int64 [1, length] to hidden states float32 [1, length, hidden]."""

    def layer(self, index: int) -> LayerFunction:
        """One layer over a whole window, causal, from an empty KV cache."""

    def head(self, start: int, stop: int) -> LayerFunction:
        """Final norm and head: hidden states to logits [1, length, stop - start]."""


def compare(
    reference: LayerwiseModel,
    candidate: LayerwiseModel,
    windows: Windows,
    *,
    progress: Callable[[int, int], None],
) -> Divergence:
    """KL, agreement and likelihoods of `candidate` against `reference`, per predicted position.

    `progress` is called with (steps done, steps in all); a step is a layer or a slice of the head.
    """
    return compare_many(reference, [candidate], windows, progress=progress)[0]


def compare_many(
    reference: LayerwiseModel,
    candidates: Sequence[LayerwiseModel],
    windows: Windows,
    *,
    progress: Callable[[int, int], None],
    layer_divergence: LayerDivergence | None = None,
) -> list[Divergence]:
    """As `compare`, for several candidates in one pass; `layer_divergence` observes all layers."""
    slices = head_slices(reference)
    steps = reference.layers + len(slices)
    ids = windows.ids[:, None]
    theirs = _each(reference.embed(), ids)
    ours = [_each(candidate.embed(), ids) for candidate in candidates]
    for index in range(reference.layers):
        theirs = _each(reference.layer(index), theirs)
        for number, candidate in enumerate(candidates):
            ours[number] = _each(candidate.layer(index), ours[number])
        if layer_divergence is not None:
            layer_divergence.observe(theirs, ours)
        progress(index + 1, steps)

    meters = [[DivergenceMeter(row[1:]) for row in windows.ids] for _ in candidates]
    for done, (start, stop) in enumerate(slices):
        reference_head = reference.head(start, stop)
        heads = [candidate.head(start, stop) for candidate in candidates]
        for row, other in enumerate(theirs):
            expected = reference_head(other[:, :-1])[0]
            for head, mine, meter in zip(heads, ours, meters, strict=True):
                meter[row].add(expected, head(mine[row][:, :-1])[0])
        if layer_divergence is not None:
            layer_divergence.add_head_slice(reference_head)
        progress(reference.layers + done + 1, steps)
    return [join([meter.result() for meter in row_meters]) for row_meters in meters]


def compare_logits(
    reference: LayerwiseModel,
    candidate: Callable[[npt.NDArray[np.int64]], Float32],
    windows: Windows,
    *,
    progress: Callable[[int, int], None],
) -> Divergence:
    """As `compare`, for a candidate that runs as a whole: it gives the logits float32 [n, vocab] of
    ids int64 [n]. A step is a layer of the reference, or a window."""
    steps = reference.layers + len(windows.ids)
    states = _each(reference.embed(), windows.ids[:, None])
    for index in range(reference.layers):
        states = _each(reference.layer(index), states)
        progress(index + 1, steps)
    results = []
    for row, ids in enumerate(windows.ids):
        found = candidate(ids)[:-1]
        meter = DivergenceMeter(ids[1:])
        for start, stop in head_slices(reference):
            expected = reference.head(start, stop)(states[row][:, :-1])[0]
            meter.add(expected, found[:, start:stop])
        results.append(meter.result())
        progress(reference.layers + row + 1, steps)
    return join(results)


def head_slices(stack: LayerwiseModel) -> list[tuple[int, int]]:
    """The vocabulary as [start, stop) of heads that are small enough to be held."""
    width = max(1, _HEAD_BYTES // (4 * stack.hidden_size))
    ends = range(width, stack.vocab_size + width, width)
    return [(end - width, min(end, stack.vocab_size)) for end in ends]


def _each(block: LayerFunction, states: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """One block over every window, in place where the shape stays."""
    first = block(states[0])
    out = states if first.shape == states[0].shape and first.dtype == states.dtype else None
    if out is None:
        out = np.empty((len(states), *first.shape), first.dtype)
    out[0] = first
    for index in range(1, len(states)):
        out[index] = block(states[index])
    return out


States = npt.NDArray[np.generic]


class LayerDivergence:
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

    def observe(self, reference: States, candidates: list[States]) -> None:
        """The next layer's states, float32 [windows, 1, length, hidden] of each model."""
        self._reference.append(self._sample(reference))
        for seen, meters, states in zip(self._candidates, self._meters, candidates, strict=True):
            seen.append(self._sample(states))
            # No token is asked for here, only how far the distributions are apart.
            meters.append(DivergenceMeter(np.zeros(len(seen[-1]), np.int64)))

    def add_head_slice(self, head: Callable[[States], Float32]) -> None:
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
