"""One layer quantized so that it makes up for what the layers before have lost.

Two streams of hidden states go through the layers: the original's and the quantized model's. The
two matrices of a layer that write into the stream, o and down, are moved before they are rounded,
so that the quantized stream comes back to the original's; see `methods.compensation`. For that,
down must see what o left: the text passes the layer four times in place of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from edgesdk_quantize.formats import Packed
from edgesdk_quantize.methods.compensation import ShortfallMeter, compensated
from edgesdk_quantize.methods.moments import Moments, MomentsMeter

from edgesdk_export.calibration.running import (
    ATTENDED,
    TAP_OF,
    Quantized,
    run_layer,
    window_outputs,
)
from edgesdk_export.onnx import FloatTensors, PartModel, layer_model
from edgesdk_export.onnx.parts import tapped_layer_model
from edgesdk_export.resume import Arrays
from edgesdk_export.spec import DecoderSpec
from edgesdk_export.weights import Float32

# Rounds one stored matrix: its name in the layer, its weights, and the moments of its inputs.
RoundMatrix = Callable[[str, Float32, Moments], Packed]


def compensating_layer(
    spec: DecoderSpec,
    tensors: FloatTensors,
    index: int,
    carried: Arrays,
    round_matrix: RoundMatrix,
) -> tuple[dict[str, Packed], Arrays]:
    """Quantize a layer.

    Args:
        carried: "clean" and "states": the original's and the quantized stream before the layer,
            float32 [windows, length, hidden].

    Returns:
        The packed matrices by stored name, and what is carried on.
    """
    part = tapped_layer_model(spec, tensors, index, (ATTENDED,))
    attended: list[Float32] = []
    clean = run_layer(part, carried["clean"], {ATTENDED: attended.append}, prepack=False)
    states = carried["states"]
    packed: dict[str, Packed] = {}
    for reading, writing, wanted in (("qkv", "o", attended), ("gate", "down", list(clean))):
        taps = (reading, writing, ATTENDED) if writing == "o" else (reading, writing)
        part = tapped_layer_model(spec, Quantized(tensors, packed), index, taps)
        moments, shortfall = _measured(spec, part, taps, states, wanted)
        del part
        for matrix in [matrix for matrix in TAP_OF if TAP_OF[matrix] in (reading, writing)]:
            name = f"layers.{index}.{matrix}"
            rows = np.asarray(tensors[f"{name}.weight"].numpy(), np.float32)
            if matrix == writing:
                rows = compensated(rows, moments[writing], shortfall)
            packed[name] = round_matrix(name, rows, moments[TAP_OF[matrix]])
    quantized = layer_model(spec, Quantized(tensors, packed), index)
    return packed, {"clean": clean, "states": run_layer(quantized, states, prepack=True)}


def _measured(
    spec: DecoderSpec,
    part: PartModel,
    taps: tuple[str, ...],
    states: Float32,
    wanted: Sequence[Float32],
) -> tuple[dict[str, Moments], Float32]:
    """The moments of the first two taps, and what the stream lacks of `wanted` after the second
    one's matrix as it is now."""
    columns = {"o": spec.heads * spec.head_size, "down": spec.intermediate_size}
    meters = {tap: MomentsMeter(columns.get(tap, spec.hidden_size)) for tap in taps[:2]}
    shortfall = ShortfallMeter(columns[taps[1]], spec.hidden_size)
    passed = window_outputs(part, states, prepack=False)
    for (after, *inputs), target in zip(passed, wanted, strict=True):
        for tap, values in zip(taps[:2], inputs, strict=False):
            meters[tap].add(values)
        reached = inputs[2] if ATTENDED in taps else after
        shortfall.add(inputs[1], target - reached)
    return {tap: meter.result() for tap, meter in meters.items()}, shortfall.result()
