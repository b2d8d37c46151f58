"""One pass of a text through a checkpoint, for the importance of every matrix's inputs."""

from __future__ import annotations

from collections.abc import Callable

from edgesdk_export.calibration.importance import ChannelSquares, ImportanceMatrix, gguf_names
from edgesdk_export.calibration.running import TAPS, SquaresMeter, embedded, run_layer
from edgesdk_export.onnx import FloatTensors
from edgesdk_export.onnx.parts import tapped_layer_model
from edgesdk_export.quality.text import Windows
from edgesdk_export.resume import Arrays, Kept, over_layers
from edgesdk_export.weights import Decoder


def collect_importance(
    decoder: Decoder,
    windows: Windows,
    *,
    text_name: str,
    kept: Kept | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportanceMatrix:
    """Run the text through the float32 layers, one in memory at a time, and sum up squares.

    Args:
        text_name: what the file will call the text.
        kept: where the pass goes on from if it was killed.
        progress: called with the number of layers done.
    """
    spec, tensors = decoder.spec, FloatTensors(decoder)

    def step(index: int, carried: Arrays) -> Arrays:
        meters = {tap: SquaresMeter() for tap in TAPS}
        part = tapped_layer_model(spec, tensors, index, TAPS)
        observers = {tap: meter.add for tap, meter in meters.items()}
        states = run_layer(part, carried["states"], observers, prepack=False)
        sums = {f"layers.{index}.{tap}": meter.sums for tap, meter in meters.items()}
        return {**carried, **sums, "states": states}

    def first() -> Arrays:
        return {"states": embedded(decoder, windows)}

    found = over_layers(kept, "importance", spec.layers, first, step, progress)
    entries = {
        name: ChannelSquares(found[tap], windows.ids.size)
        for tap, names in gguf_names(spec).items()
        for name in names
    }
    return ImportanceMatrix(entries, (text_name,), windows.ids.shape[1])
