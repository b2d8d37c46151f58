"""Choose the grids that inputs and products of matrices are rounded to, by the values of a text.

The text runs through the float32 layers, one in memory at a time, as for importance weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from edgesdk_quantize.formats.qdq import Qdq

from edgesdk_export.calibration.layer_runner import TAP_OF, TAPS, embed_windows, run_layer
from edgesdk_export.onnx import FloatTensors
from edgesdk_export.onnx.partial_models import tapped_layer_model
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.resume import Arrays, ResumeState, carry_through_layers
from edgesdk_export.weights import Decoder, Float32, read_whole, row_chunks

# A grid reaches so much further than the text did. That costs one of 16 bits, and a value beyond
# the grid would cost its whole size.
_HEADROOM = 2.0
_INPUT, _PRODUCT = "input", "product"


def activation_grids(
    decoder: Decoder,
    windows: Windows,
    fmt: Qdq,
    *,
    resume: ResumeState | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, ir.TensorProtocol]:
    """The scale and zero-point of each grid, as stored tensors M.input_scale, M.input_zero_point,
    M.product_scale and M.product_zero_point of every stored matrix M.

    Args:
        resume: where the pass goes on from if it was killed.
        progress: called with the number of layers done.
    """
    spec, tensors = decoder.spec, FloatTensors(decoder)

    def step(index: int, carried: Arrays) -> Arrays:
        meters: dict[str, _RangeMeter] = {}
        matrices = {part: tensors[f"layers.{index}.{part}.weight"].numpy() for part in TAP_OF}

        def observe(tap: str, inputs: Float32) -> None:
            for part, source in TAP_OF.items():
                if source == tap:
                    at = f"layers.{index}.{part}"
                    meters.setdefault(f"{at}.{_INPUT}", _RangeMeter()).add(inputs)
                    product = inputs @ matrices[part].T
                    meters.setdefault(f"{at}.{_PRODUCT}", _RangeMeter()).add(product)

        observers = {tap: lambda inputs, tap=tap: observe(tap, inputs) for tap in TAPS}
        part = tapped_layer_model(spec, tensors, index, TAPS)
        states = run_layer(part, carried["states"], observers, prepack=False)
        ranges = {name: np.array([meter.low, meter.high]) for name, meter in meters.items()}
        return {**carried, **ranges, "states": states}

    def first() -> Arrays:
        return {"states": embed_windows(decoder, windows)}

    found = dict(carry_through_layers(resume, "grids", spec.layers, first, step, progress))
    states = found.pop("states")
    found |= _head_ranges(decoder, states)
    grids: dict[str, ir.TensorProtocol] = {}
    for name, (low, high) in found.items():
        grid = fmt.activation(_HEADROOM * float(low), _HEADROOM * float(high))
        grids[f"{name}_scale"] = ir.tensor(np.float32(grid.scale), name=f"{name}_scale")
        zero = np.array(grid.zero_point, grid.dtype)
        grids[f"{name}_zero_point"] = ir.tensor(zero, name=f"{name}_zero_point")
    return grids


class _RangeMeter:
    """The smallest and the largest value that was seen."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Float32) -> None:
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))


def _head_ranges(decoder: Decoder, states: Float32) -> Arrays:
    """Of the head, whose input is what the last norm gives."""
    spec, weights = decoder.spec, decoder.weights
    gain = read_whole(weights["final_norm.weight"])
    matrix = weights["embed.weight" if spec.tied else "head.weight"]
    inputs, products = _RangeMeter(), _RangeMeter()
    normed = [
        window / np.sqrt(np.square(window).mean(axis=-1, keepdims=True) + spec.norm_eps) * gain
        for window in states
    ]
    for window in normed:
        inputs.add(window)
    for rows in row_chunks(matrix):
        for window in normed:
            products.add(window @ rows.T)
    return {
        f"head.{_INPUT}": np.array([inputs.low, inputs.high]),
        f"head.{_PRODUCT}": np.array([products.low, products.high]),
    }
