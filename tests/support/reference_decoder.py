"""The plainest possible evaluation of a `Decoder`: numpy, float64, one sequence, no cache.

It reads a `DecoderSpec` literally, so that a wrong field or a mixed-up weight shows as a wrong
logit when it is compared with transformers or llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from edgesdk_export.weights import Decoder, read_whole

from edgesdk.bundle.spec import DecoderSpec, RopeSpec

Array = np.ndarray[Any, np.dtype[np.float64]]


# What the inputs of a matrix become before they are multiplied with it.
Rounding = Callable[[Array], Array]


def rounded_to_8_bits(x: Array) -> Array:
    """Each row on a grid of 256 steps from its smallest to its largest value, 0 among them, as
    XNNPACK rounds the inputs of matrices of 8 or 4 bits."""
    low = np.minimum(x.min(-1, keepdims=True), 0).astype(np.float32)
    high = np.maximum(x.max(-1, keepdims=True), 0).astype(np.float32)
    steps = np.float32(255) / (high - low)
    zero = np.clip(np.rint(-low * steps) - 128, -128, 127)
    codes = np.clip(np.rint(x.astype(np.float32) * steps + zero), -128, 127)
    rounded: Array = ((codes - zero) / steps).astype(np.float64)
    return rounded


def logits_of(decoder: Decoder, tokens: list[int], inputs: Rounding = lambda x: x) -> Array:
    """Logits [tokens, vocab] of a decoder; `inputs` rounds what matrices are multiplied with."""
    spec = decoder.spec
    weights = {name: read_whole(w).astype(np.float64) for name, w in decoder.weights.items()}
    x = weights["embed.weight"][tokens] * spec.embedding_scale
    for i in range(spec.layers):
        layer = {k[len(f"layers.{i}.") :]: w for k, w in weights.items() if f"layers.{i}." in k}
        y = _attention(spec, i, layer, _norm(x, layer["input_norm.weight"], spec.norm_eps), inputs)
        if spec.norm_placement == "sandwich":
            y = _norm(y, layer["post_attention_norm.weight"], spec.norm_eps)
        x = x + y
        y = _mlp(spec, layer, _norm(x, layer["pre_mlp_norm.weight"], spec.norm_eps), inputs)
        if spec.norm_placement == "sandwich":
            y = _norm(y, layer["post_mlp_norm.weight"], spec.norm_eps)
        x = x + y
    x = _norm(x, weights["final_norm.weight"], spec.norm_eps)
    head = weights["embed.weight" if spec.tied else "head.weight"]
    return _cap(inputs(x) @ head.T, spec.logit_softcap)


def _attention(
    spec: DecoderSpec, i: int, layer: dict[str, Array], x: Array, inputs: Rounding
) -> Array:
    length, size = len(x), spec.head_size
    q, k, v = (
        _linear(layer, part, inputs(x)).reshape(length, -1, size).swapaxes(0, 1)
        for part in ("q", "k", "v")
    )
    if spec.qk_norm:
        q = _norm(q, layer["q_norm.weight"], spec.norm_eps)
        k = _norm(k, layer["k_norm.weight"], spec.norm_eps)
    q, k = (_rotate(spec.rope_of(i), part) for part in (q, k))
    k, v = (np.repeat(part, spec.heads // spec.kv_heads, axis=0) for part in (k, v))
    scores = _cap(q @ k.swapaxes(1, 2) * spec.attention_scale, spec.attention_softcap)
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    hidden = (distance < 0) | (distance >= (spec.windows[i] or length))
    scores = np.where(hidden, -np.inf, scores)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    return _linear(layer, "o", inputs((share @ v).swapaxes(0, 1).reshape(length, -1)))


def _mlp(spec: DecoderSpec, layer: dict[str, Array], x: Array, inputs: Rounding) -> Array:
    x = inputs(x)
    gate = _linear(layer, "gate", x)
    if spec.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        gate = 0.5 * gate * (1 + np.tanh(inner))
    return _linear(layer, "down", inputs(gate * _linear(layer, "up", x)))


def _linear(layer: dict[str, Array], part: str, x: Array) -> Array:
    return x @ layer[f"{part}.weight"].T + layer.get(f"{part}.bias", np.float64(0))


def _norm(x: Array, gain: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def _cap(x: Array, cap: float | None) -> Array:
    return x if cap is None else cap * np.tanh(x / cap)


def _rotate(rope: RopeSpec, x: Array) -> Array:
    length, half = x.shape[1], rope.rotary_size // 2
    angles = np.arange(length)[:, None] * frequencies_of(rope, length)[None, :]
    cos, sin = np.cos(angles) * rope.attention_factor, np.sin(angles) * rope.attention_factor
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def frequencies_of(rope: RopeSpec, length: int) -> Array:
    exponents = np.arange(0, rope.rotary_size, 2) / rope.rotary_size
    plain = rope.theta**-exponents
    context = float(rope.original_context or 0)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind == "longrope":
        factors = rope.long_factors if length > context else rope.short_factors
        return plain / np.array(factors)
    if rope.kind == "llama3":
        turns = context * plain / (2 * math.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return plain * (keep + (1 - keep) / rope.factor)
    if rope.kind == "yarn":
        low, high = (
            rope.rotary_size * math.log(context / (beta * 2 * math.pi)) / (2 * math.log(rope.theta))
            for beta in (rope.beta_fast, rope.beta_slow)
        )
        first, last = max(math.floor(low), 0), min(math.ceil(high), rope.rotary_size - 1)
        ramp = np.clip((np.arange(len(plain)) - first) / max(last - first, 0.001), 0, 1)
        return plain * (1 - ramp + ramp / rope.factor)
    return plain
