"""Measure how much KL divergence each matrix costs when it is quantized.

Two things are measured on a few windows of text. For every layer, the divergence of the model's
output when all matrices of that layer alone are rounded: the disturbed hidden states of each layer
are carried along with the clean ones to the end, so every layer's weights are read once. And for
every matrix, what it alone adds to the output of its layer. To first order divergence grows with
the squared disturbance, wherever in the layer that came from, so

    KL of a matrix = KL of its layer * (its disturbance / the layer's)

Other formats are judged by their importance-weighted rounding error against the probe's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from edgesdk_quantize.divergence import DivergenceMeter
from edgesdk_quantize.formats import BlockFormat, Int4
from edgesdk_quantize.methods.grid import round_all, search_grid

from edgesdk_export.calibration.layer_runner import (
    TAP_OF,
    TAPS,
    SquaresMeter,
    embed_windows,
    run_layer,
)
from edgesdk_export.onnx import FloatTensors, layer_model
from edgesdk_export.onnx.graph_builder import Weights
from edgesdk_export.onnx.partial_models import tapped_layer_model
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint
from edgesdk_export.resume import Arrays, ResumeState, carry_through_layers, compute_once
from edgesdk_export.weights import Decoder, Float32

# What matrices are rounded to while divergence is measured.
PROBE = Int4()
# So many rows say how much larger the error of one format is than that of another.
_SAMPLED_ROWS = 64


@dataclass(frozen=True)
class MatrixCost:
    """The cost of a matrix in each format that it may have.

    Attributes:
        weights: how many it has.
        divergence: expected mean KL in nats, for each of the formats asked about, in order.
    """

    weights: int
    divergence: tuple[float, ...]


def measure_costs(
    decoder: Decoder,
    windows: Windows,
    formats: Sequence[BlockFormat],
    *,
    resume: ResumeState | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, MatrixCost]:
    """The cost of every stored matrix of every layer ("layers.3.down") in each format.

    `resume` is where the pass goes on from if it was killed, and `progress` is called with the
    number of layers done. In memory are the hidden states of the text once for each layer, and one
    layer's weights twice.
    """
    spec, tensors = decoder.spec, FloatTensors(decoder)

    def step(index: int, carried: Arrays) -> Arrays:
        probe, clean, all_rounded = _probe_layer(decoder, tensors, index, carried["clean"], formats)
        part = layer_model(spec, tensors, index)
        if index:
            before = carried["disturbed"]
            together = run_layer(part, before.reshape(-1, *before.shape[2:]), prepack=False)
            disturbed = np.concatenate([together.reshape(before.shape), all_rounded[None]])
        else:
            disturbed = all_rounded[None]
        return {**carried, **probe, "clean": clean, "disturbed": disturbed}

    def divergences() -> Arrays:
        stack = LayerwiseCheckpoint(decoder)
        found = _divergences(stack, windows, probed["clean"], list(probed["disturbed"]))
        return {"divergences": np.array(found)}

    def first() -> Arrays:
        return {"clean": embed_windows(decoder, windows)}

    probed = carry_through_layers(resume, "sensitivity", spec.layers, first, step, progress)
    by_layer = compute_once(resume, "divergences", divergences)["divergences"]
    costs = {}
    for index in range(spec.layers):
        for matrix in TAP_OF:
            name = f"layers.{index}.{matrix}"
            weights, share, *ratios = probed[name].tolist()
            divergence = float(by_layer[index])
            costs[name] = MatrixCost(
                int(weights), tuple(divergence * share * ratio for ratio in ratios)
            )
    return costs


def _probe_layer(
    decoder: Decoder,
    tensors: FloatTensors,
    index: int,
    states: Float32,
    formats: Sequence[BlockFormat],
) -> tuple[Arrays, Float32, Float32]:
    """The layer's probe, the states after it, and those after it with all matrices rounded.

    The probe has for each matrix ("layers.3.down"), as float64: its number of weights, its share of
    the layer's disturbance, and the error of each format against that of `PROBE`.
    """
    spec, at = decoder.spec, f"layers.{index}."
    part = tapped_layer_model(spec, tensors, index, TAPS)
    squares = {tap: SquaresMeter() for tap in TAPS}
    observers = {tap: meter.add for tap, meter in squares.items()}
    after = run_layer(part, states, observers, prepack=False)
    rounded, sizes, shares, ratios = {}, {}, {}, {}
    for matrix, tap in TAP_OF.items():
        name = f"{at}{matrix}.weight"
        rows, importance = np.asarray(part.weights[name]), squares[tap].mean
        sizes[matrix] = rows.size
        ratios[matrix] = _ratios(rows, importance, formats)
        grid = search_grid(rows, PROBE, importance)
        rounded[name] = round_all(grid, np.ascontiguousarray(rows.T)).T.copy()
        one = layer_model(spec, _ReplacedWeights(tensors, {name: rounded[name]}), index)
        shares[matrix] = _disturbance(after, run_layer(one, states, prepack=False))
    whole = layer_model(spec, _ReplacedWeights(tensors, rounded), index)
    all_rounded = run_layer(whole, states, prepack=False)
    total = max(_disturbance(after, all_rounded), 1e-30)
    probe = {
        at + matrix: np.array([sizes[matrix], shares[matrix] / total, *ratios[matrix]])
        for matrix in TAP_OF
    }
    return probe, after, all_rounded


def _ratios(
    rows: Float32, importance: Float32, formats: Sequence[BlockFormat]
) -> tuple[float, ...]:
    sample = rows[:: max(1, len(rows) // _SAMPLED_ROWS)]

    def error(fmt: BlockFormat) -> float:
        grid = search_grid(sample, fmt, importance)
        points = round_all(grid, np.ascontiguousarray(sample.T)).T
        return float((np.square(points - sample) @ importance).sum())

    base = max(error(PROBE), 1e-30)
    return tuple(error(fmt) / base for fmt in formats)


def _disturbance(clean: Float32, other: Float32) -> float:
    """The mean over tokens of the squared relative distance: a norm makes all tokens alike."""
    distance = np.square(other - clean).sum(axis=-1, dtype=np.float64)
    return float((distance / np.square(clean).sum(axis=-1, dtype=np.float64)).mean())


def _divergences(
    stack: LayerwiseCheckpoint, windows: Windows, clean: Float32, disturbed: Sequence[Float32]
) -> list[float]:
    """Mean KL of each disturbed stream against the clean one."""
    width = max(1, 2**23 // stack.hidden_size)
    meters = [[DivergenceMeter(row[1:]) for row in windows.ids] for _ in disturbed]
    for start in range(0, stack.vocab_size, width):
        head = stack.head(start, min(start + width, stack.vocab_size))
        for window in range(len(windows.ids)):
            reference = head(clean[window : window + 1, :-1])[0]
            for meter, states in zip(meters, disturbed, strict=True):
                meter[window].add(reference, head(states[window : window + 1, :-1])[0])
    return [float(np.concatenate([meter.result().kl for meter in row]).mean()) for row in meters]


class _ReplacedWeights:
    """Weights of which some are others."""

    def __init__(self, weights: Weights, others: Mapping[str, Float32]) -> None:
        self._weights = weights
        self._others = others

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> ir.TensorProtocol:
        if name in self._others:
            return ir.tensor(self._others[name], name=name)
        return self._weights[name]
