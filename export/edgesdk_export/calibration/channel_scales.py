"""Move per-channel scales between neighbouring weights, so that rounding loses less (AWQ).

Three places in a layer pass a channel on linearly: a norm's gain into the matrices that read it,
v into o (attention mixes values channel by channel), and up into down (the gated product is linear
in up). One side is multiplied with a scale and the other divided by it, so the decoder computes the
same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from edgesdk_quantize.formats import BlockFormat
from edgesdk_quantize.methods.awq import search_channel_scales
from edgesdk_quantize.methods.moments import SecondMoments, SecondMomentsMeter

from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.calibration.layer_runner import TAP_OF, TAPS, embed_windows, run_layer
from edgesdk_export.onnx import FloatTensors
from edgesdk_export.onnx.partial_models import tapped_layer_model
from edgesdk_export.onnx.source_blocks import preserved_matrices
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.resume import Arrays, ResumeState, carry_through_layers
from edgesdk_export.weights import Decoder, Float32, LazyTensor


def apply_awq(
    decoder: Decoder,
    windows: Windows,
    matrix_formats: Mapping[str, BlockFormat],
    *,
    resume: ResumeState | None = None,
    progress: Callable[[int], None] | None = None,
) -> Decoder:
    """Move scales so that rounding to `matrix_formats` loses less; the decoder computes the same.
    Matrices whose blocks in the checkpoint fit their format lose nothing, and are left alone.

    Args:
        windows: the calibration text, run through the float32 layers.
        matrix_formats: the format of each stored matrix of the layers.
        resume: where the search goes on from if it was killed.
        progress: called with the number of layers done.
    """
    spec, tensors = decoder.spec, FloatTensors(decoder)
    preserved = preserved_matrices(decoder, matrix_formats)

    def step(index: int, carried: Arrays) -> Arrays:
        at = f"layers.{index}."
        part = tapped_layer_model(spec, tensors, index, TAPS)
        matrices = {
            matrix: np.asarray(part.weights[f"{at}{matrix}.weight"], np.float32)
            for matrix in TAP_OF
        }
        meters = {tap: SecondMomentsMeter(matrices[tap].shape[1]) for tap in TAPS}
        observers = {tap: meter.add for tap, meter in meters.items()}
        states = run_layer(part, carried["states"], observers, prepack=False)

        moments = {tap: meter.result() for tap, meter in meters.items()}
        found = _layer_scales(spec, at, matrices, moments, matrix_formats, preserved)
        scales = dataclasses.asdict(found)
        return {**carried, **{at + name: scale for name, scale in scales.items()}, "states": states}

    def first() -> Arrays:
        return {"states": embed_windows(decoder, windows)}

    found = carry_through_layers(resume, "channel-scales", spec.layers, first, step, progress)
    names = [field.name for field in dataclasses.fields(LayerScales)]
    return rescale_decoder(
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
    moments: Mapping[str, SecondMoments],
    matrix_formats: Mapping[str, BlockFormat],
    preserved: Set[str],
) -> LayerScales:
    def changes(*names: str) -> bool:
        return preserved.isdisjoint(at + name for name in names)

    def search(tap: str, shared: tuple[int, int] | None = None) -> Float32:
        readers = [rows for name, rows in matrices.items() if TAP_OF[name] == tap]
        return search_channel_scales(readers, matrix_formats[at + tap], moments[tap], shared=shared)

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


@dataclass(frozen=True)
class LayerScales:
    """The factors of the columns of one layer's matrices; all positive, float32.

    Attributes:
        attention: of q, k, v [hidden]; the input norm's gain is divided by it.
        values: of o [kv_heads * head_size], repeated for the query heads of each group; the rows
            of v are divided by it.
        mlp: of gate and up [hidden]; the gain of the norm before the MLP is divided by it.
        inner: of down [intermediate]; the rows of up are divided by it.
    """

    attention: Float32
    values: Float32
    mlp: Float32
    inner: Float32


def rescale_decoder(decoder: Decoder, scales: Sequence[LayerScales]) -> Decoder:
    """Move one `LayerScales` per layer between the weights of a decoder, which computes the same.
    Weights are scaled when they are read; those whose factors are all one stay as they are."""
    factors: dict[str, tuple[Float32 | None, Float32 | None]] = {}
    for index, layer in enumerate(scales):
        for name, pair in _factors(decoder.spec, layer).items():
            if any(side is not None and np.any(side != 1) for side in pair):
                factors[f"layers.{index}.{name}"] = pair
    weights: Mapping[str, LazyTensor] = {
        name: _RescaledTensor(tensor, *factors[name]) if name in factors else tensor
        for name, tensor in decoder.weights.items()
    }
    return Decoder(decoder.spec, weights)


def off_grid(decoder: Decoder, *, seed: int, sigma: float = 0.1) -> Decoder:
    """The same decoder with random log-normal scales in all places.

    Weights that were once dequantized lie on a grid, and a format with the same grid would look
    perfect on them; these do not.
    """
    rng = np.random.default_rng(seed)
    spec = decoder.spec

    def draw(size: int) -> Float32:
        return np.exp(rng.normal(0.0, sigma, size)).astype(np.float32)

    return rescale_decoder(
        decoder,
        [
            LayerScales(
                attention=draw(spec.hidden_size),
                values=draw(spec.kv_heads * spec.head_size),
                mlp=draw(spec.hidden_size),
                inner=draw(spec.intermediate_size),
            )
            for _ in range(spec.layers)
        ],
    )


def for_query_heads(spec: DecoderSpec, values: Float32) -> Float32:
    """A vector over the channels of v [kv_heads * head_size] as one over o's inputs."""
    by_head = values.reshape(spec.kv_heads, 1, spec.head_size)
    group = spec.heads // spec.kv_heads
    return np.broadcast_to(by_head, (spec.kv_heads, group, spec.head_size)).reshape(-1)


def _factors(
    spec: DecoderSpec, layer: LayerScales
) -> dict[str, tuple[Float32 | None, Float32 | None]]:
    """Factors of rows and of columns, by the weight's name within the layer."""
    return {
        "input_norm.weight": (_inverse(layer.attention), None),
        "q.weight": (None, layer.attention),
        "k.weight": (None, layer.attention),
        "v.weight": (_inverse(layer.values), layer.attention),
        "v.bias": (_inverse(layer.values), None),
        "o.weight": (None, for_query_heads(spec, layer.values)),
        "pre_mlp_norm.weight": (_inverse(layer.mlp), None),
        "gate.weight": (None, layer.mlp),
        "up.weight": (_inverse(layer.inner), layer.mlp),
        "up.bias": (_inverse(layer.inner), None),
        "down.weight": (None, layer.inner),
    }


def _inverse(factors: Float32) -> Float32:
    return np.reciprocal(factors)


@dataclass(frozen=True)
class _RescaledTensor:
    """A tensor times factors of its rows and of its columns; a `LazyTensor`."""

    tensor: LazyTensor
    row_factors: Float32 | None
    column_factors: Float32 | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Float32:
        """Rows [start, stop), multiplied."""
        values = self.tensor.rows(start, stop)
        if self.row_factors is not None:
            factors = self.row_factors[start:stop]
            values = values * factors.reshape(-1, *(1,) * (values.ndim - 1))
        if self.column_factors is not None:
            values = values * self.column_factors
        return values
