"""One pass of a text through a checkpoint, for the importance of every matrix's inputs."""

from __future__ import annotations

from collections.abc import Callable

from edgesdk_export.calibration.importance import ChannelSquares, ImportanceMatrix, gguf_names
from edgesdk_export.calibration.running import TAPS, SquaresMeter, embedded, run_layer
from edgesdk_export.onnx import FloatTensors
from edgesdk_export.onnx.parts import tapped_layer_model
from edgesdk_export.quality.text import Windows
from edgesdk_export.weights import Decoder


def collect_importance(
    decoder: Decoder,
    windows: Windows,
    *,
    text_name: str,
    progress: Callable[[int], None] | None = None,
) -> ImportanceMatrix:
    """Run the text through the float32 layers, one in memory at a time, and sum up squares.

    Args:
        text_name: what the file will call the text.
        progress: called with the number of layers done.
    """
    tensors = FloatTensors(decoder)
    states = embedded(decoder, windows)
    names = gguf_names(decoder.spec)
    entries = {}
    for index in range(decoder.spec.layers):
        meters = {tap: SquaresMeter() for tap in TAPS}
        part = tapped_layer_model(decoder.spec, tensors, index, TAPS)
        observers = {tap: meter.add for tap, meter in meters.items()}
        states = run_layer(part, states, observers, prepack=False)
        for tap, meter in meters.items():
            for name in names[f"layers.{index}.{tap}"]:
                entries[name] = ChannelSquares(meter.sums, windows.ids.size)
        if progress is not None:
            progress(index + 1)
    return ImportanceMatrix(entries, (text_name,), windows.ids.shape[1])
