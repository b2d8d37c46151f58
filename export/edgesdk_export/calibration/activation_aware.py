"""AWQ over a whole decoder: scales searched layer by layer, folded into neighbouring weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Set

import numpy as np
from edgesdk_quantize.formats import BlockFormat
from edgesdk_quantize.methods.awq import search_channel_scales
from edgesdk_quantize.methods.moments import Moments, MomentsMeter

from edgesdk_export.calibration.kept_blocks import kept_matrices
from edgesdk_export.calibration.rescaling import LayerScales, rescaled
from edgesdk_export.calibration.running import TAP_OF, TAPS, embedded, run_layer
from edgesdk_export.onnx import FloatTensors
from edgesdk_export.onnx.parts import tapped_layer_model
from edgesdk_export.quality.text import Windows
from edgesdk_export.resume import Arrays, Kept, over_layers
from edgesdk_export.spec import DecoderSpec
from edgesdk_export.weights import Decoder, Float32


def activation_aware(
    decoder: Decoder,
    windows: Windows,
    forms: Mapping[str, BlockFormat],
    *,
    kept: Kept | None = None,
    progress: Callable[[int], None] | None = None,
) -> Decoder:
    """The same decoder with scales moved so that rounding to `forms` loses less. Matrices whose
    blocks in the checkpoint fit their format lose nothing, and are left alone.

    Args:
        windows: the calibration text, run through the float32 layers.
        forms: the format of each stored matrix of the layers.
        kept: where the search goes on from if it was killed.
        progress: called with the number of layers done.
    """
    spec, tensors = decoder.spec, FloatTensors(decoder)
    kept_whole = kept_matrices(decoder, forms)

    def step(index: int, carried: Arrays) -> Arrays:
        at = f"layers.{index}."
        part = tapped_layer_model(spec, tensors, index, TAPS)
        matrices = {
            matrix: np.asarray(part.weights[f"{at}{matrix}.weight"], np.float32)
            for matrix in TAP_OF
        }
        meters = {tap: MomentsMeter(matrices[tap].shape[1]) for tap in TAPS}
        observers = {tap: meter.add for tap, meter in meters.items()}
        states = run_layer(part, carried["states"], observers, prepack=False)

        moments = {tap: meter.result() for tap, meter in meters.items()}
        found = _layer_scales(spec, at, matrices, moments, forms, kept_whole)
        scales = dataclasses.asdict(found)
        return {**carried, **{at + name: scale for name, scale in scales.items()}, "states": states}

    def first() -> Arrays:
        return {"states": embedded(decoder, windows)}

    found = over_layers(kept, "channel-scales", spec.layers, first, step, progress)
    names = [field.name for field in dataclasses.fields(LayerScales)]
    return rescaled(
        decoder,
        [
            LayerScales(**{name: found[f"layers.{index}.{name}"] for name in names})
            for index in range(spec.layers)
        ],
    )


def _layer_scales(
    spec: DecoderSpec,
    at: str,
    matrices: Mapping[str, Float32],
    moments: Mapping[str, Moments],
    forms: Mapping[str, BlockFormat],
    kept: Set[str],
) -> LayerScales:
    def changes(*names: str) -> bool:
        return kept.isdisjoint(at + name for name in names)

    def search(tap: str, shared: tuple[int, int] | None = None) -> Float32:
        readers = [rows for name, rows in matrices.items() if TAP_OF[name] == tap]
        return search_channel_scales(readers, forms[at + tap], moments[tap], shared=shared)

    def ones(tap: str) -> Float32:
        return np.ones(matrices[tap].shape[1], np.float32)

    shared = (spec.kv_heads, spec.head_size)
    by_query_head = search("o", shared) if changes("qkv", "o") else ones("o")
    heads = by_query_head.reshape(spec.kv_heads, -1, spec.head_size)
    return LayerScales(
        attention=search("qkv") if changes("qkv") else ones("qkv"),
        values=np.ascontiguousarray(heads[:, 0].reshape(-1)),
        mlp=search("gate") if changes("gate", "up") else ones("gate"),
        inner=search("down") if changes("up", "down") else ones("down"),
    )
