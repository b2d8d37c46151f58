"""Computes a decoder on MLX from its spec and its stored weights, one chunk of tokens at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from edgesdk.bundle.rope import frequencies
from edgesdk.bundle.spec import DecoderSpec, RopeSpec
from edgesdk.engines.mlx.weights import Matrix, StoredWeights

# How many positions a cache grows by.
_CACHE_STEP = 256


@dataclass(frozen=True)
class LayerWeights:
    """One layer; norms that the spec does not have are None."""

    input_norm: mx.array
    qkv: Matrix
    q_norm: mx.array | None
    k_norm: mx.array | None
    output: Matrix
    post_attention_norm: mx.array | None
    pre_mlp_norm: mx.array
    gate: Matrix
    up: Matrix
    down: Matrix
    post_mlp_norm: mx.array | None


@dataclass
class LayerCache:
    """Keys and values of one layer, each [1, kv_heads, capacity, head_size]."""

    keys: mx.array
    values: mx.array


class MlxDecoder:
    """A decoder in memory. To be used on one thread.

    Shapes are [1, tokens, ...] throughout. The arithmetic is that of the ONNX graph
    (`edgesdk_export.onnx`), without rounding activations to 8 bits.
    """

    def __init__(self, spec: DecoderSpec, weights: StoredWeights, dtype: mx.Dtype) -> None:
        self._spec = spec
        self._dtype = dtype
        hidden = spec.hidden_size
        self._embedding = weights.matrix("embed", hidden)
        self._layers = [_read_layer(spec, weights, index) for index in range(spec.layers)]
        self._final_norm = weights.vector("final_norm.weight")
        self._head = self._embedding if spec.tied else weights.matrix("head", hidden)
        ropes = {spec.rope_of(index) for index in range(spec.layers)}
        self._ropes = {rope: _Rope(rope) for rope in ropes}
        mx.eval(_arrays(self._embedding) + _arrays(self._head))
        for layer in self._layers:
            mx.eval([part for value in vars(layer).values() for part in _arrays(value)])

    def new_cache(self) -> list[LayerCache]:
        """An empty KV cache."""
        shape = (1, self._spec.kv_heads, 0, self._spec.head_size)
        return [
            LayerCache(mx.zeros(shape, self._dtype), mx.zeros(shape, self._dtype))
            for _ in range(self._spec.layers)
        ]

    def hidden_states(self, ids: list[int], cache: list[LayerCache], held: int) -> mx.array:
        """The states behind the logits of `ids`, [1, n, hidden]; their keys and values go into the
        cache behind the first `held`."""
        spec = self._spec
        tokens = mx.array([ids])
        x = self._embedding.rows(tokens).astype(self._dtype)
        if spec.embedding_scale != 1.0:
            x = x * mx.array(spec.embedding_scale, self._dtype)
        masks = {window: _mask(len(ids), held, window) for window in dict.fromkeys(spec.windows)}
        for index, layer in enumerate(self._layers):
            normed = mx.fast.rms_norm(x, layer.input_norm, spec.norm_eps)
            branch = self._attention(index, layer, normed, cache[index], held, masks)
            x = x + self._normed(branch, layer.post_attention_norm)
            normed = mx.fast.rms_norm(x, layer.pre_mlp_norm, spec.norm_eps)
            x = x + self._normed(self._mlp(layer, normed), layer.post_mlp_norm)
        return mx.fast.rms_norm(x, self._final_norm, spec.norm_eps)

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits float32 [1, n, vocab] of states [1, n, hidden]."""
        logits = self._head.multiply(hidden).astype(mx.float32)
        cap = self._spec.logit_softcap
        return logits if cap is None else mx.tanh(logits / cap) * cap

    def _normed(self, branch: mx.array, gain: mx.array | None) -> mx.array:
        return branch if gain is None else mx.fast.rms_norm(branch, gain, self._spec.norm_eps)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        x: mx.array,
        cache: LayerCache,
        held: int,
        masks: dict[int | None, mx.array | None],
    ) -> mx.array:
        """Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245)."""
        spec = self._spec
        count, size, window = x.shape[1], spec.head_size, spec.windows[index]
        ends = [spec.heads * size, (spec.heads + spec.kv_heads) * size]
        query, key, value = mx.split(layer.qkv.multiply(x), ends, axis=-1)
        query = query.reshape(1, count, spec.heads, size)
        key = key.reshape(1, count, spec.kv_heads, size)
        if layer.q_norm is not None and layer.k_norm is not None:
            query = mx.fast.rms_norm(query, layer.q_norm, spec.norm_eps)
            key = mx.fast.rms_norm(key, layer.k_norm, spec.norm_eps)
        rope = self._ropes[spec.rope_of(index)]
        query = rope.rotate(query.transpose(0, 2, 1, 3), held)
        key = rope.rotate(key.transpose(0, 2, 1, 3), held)
        value = value.reshape(1, count, spec.kv_heads, size).transpose(0, 2, 1, 3)
        _append(cache, key, value, held)
        total = held + count
        # One new token sees its window and nothing else, so it needs no mask.
        first = max(total - window, 0) if window is not None and count == 1 else 0
        keys, values = cache.keys[:, :, first:total], cache.values[:, :, first:total]
        mask = masks[window]
        if spec.attention_softcap is None:
            mixed = mx.fast.scaled_dot_product_attention(
                query, keys, values, scale=spec.attention_scale, mask=mask
            )
        else:
            mixed = _capped_attention(
                query, keys, values, spec.attention_scale, spec.attention_softcap, mask
            )
        return layer.output.multiply(mixed.transpose(0, 2, 1, 3).reshape(1, count, -1))

    def _mlp(self, layer: LayerWeights, x: mx.array) -> mx.array:
        """down(activation(gate x) * up x); Shazeer, 2020, arXiv:2002.05202."""
        gate, up = layer.gate.multiply(x), layer.up.multiply(x)
        if self._spec.activation == "silu":
            active = gate * mx.sigmoid(gate)
        else:
            inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate * gate * gate)
            active = 0.5 * gate * (1 + mx.tanh(inner))
        return layer.down.multiply(active * up)


class _Rope:
    """Rotates heads by their positions, half-split (Su et al., 2021, arXiv:2104.09864)."""

    def __init__(self, rope: RopeSpec) -> None:
        self._rope = rope
        self._short = mx.array(frequencies(rope, long=False).astype(np.float32))
        self._long = mx.array(frequencies(rope, long=True).astype(np.float32))
        mx.eval(self._short, self._long)

    def rotate(self, heads: mx.array, held: int) -> mx.array:
        """Heads [1, heads, n, head_size] at the positions from `held` on."""
        rope = self._rope
        total = held + heads.shape[2]
        beyond = rope.kind == "longrope" and total > (rope.original_context or 0)
        turns = self._long if beyond else self._short
        # Angles are float32 products, as in transformers.
        angles = mx.arange(held, total, dtype=mx.float32)[:, None] * turns
        cos = (mx.cos(angles) * rope.attention_factor).astype(heads.dtype)
        sin = (mx.sin(angles) * rope.attention_factor).astype(heads.dtype)
        half = rope.rotary_size // 2
        left, right = heads[..., :half], heads[..., half : 2 * half]
        rotated = [left * cos - right * sin, right * cos + left * sin]
        if rope.rotary_size < heads.shape[-1]:
            rotated.append(heads[..., rope.rotary_size :])
        return mx.concatenate(rotated, axis=-1)


def _read_layer(spec: DecoderSpec, weights: StoredWeights, index: int) -> LayerWeights:
    at = f"layers.{index}."

    def norm(name: str, present: bool = True) -> mx.array | None:
        return weights.vector(f"{at}{name}.weight") if present else None

    sandwich = spec.norm_placement == "sandwich"
    return LayerWeights(
        input_norm=weights.vector(f"{at}input_norm.weight"),
        qkv=weights.matrix(f"{at}qkv", spec.hidden_size),
        q_norm=norm("q_norm", spec.qk_norm),
        k_norm=norm("k_norm", spec.qk_norm),
        output=weights.matrix(f"{at}o", spec.heads * spec.head_size),
        post_attention_norm=norm("post_attention_norm", sandwich),
        pre_mlp_norm=weights.vector(f"{at}pre_mlp_norm.weight"),
        gate=weights.matrix(f"{at}gate", spec.hidden_size),
        up=weights.matrix(f"{at}up", spec.hidden_size),
        down=weights.matrix(f"{at}down", spec.intermediate_size),
        post_mlp_norm=norm("post_mlp_norm", sandwich),
    )


def _arrays(value: object) -> list[mx.array]:
    """The arrays that a weight consists of."""
    if isinstance(value, mx.array):
        return [value]
    return [part for part in vars(value).values() if isinstance(part, mx.array)] if value else []


def _append(cache: LayerCache, key: mx.array, value: mx.array, held: int) -> None:
    """Put new keys and values behind the first `held`; what stood there is forgotten."""
    total = held + key.shape[2]
    capacity = cache.keys.shape[2]
    if total > capacity:
        room = list(cache.keys.shape)
        room[2] = -(-total // _CACHE_STEP) * _CACHE_STEP - capacity
        empty = mx.zeros(room, cache.keys.dtype)
        cache.keys = mx.concatenate([cache.keys, empty], axis=2)
        cache.values = mx.concatenate([cache.values, empty], axis=2)
    start = mx.array([held])
    # A new array each: MLX writes in place where nobody else holds the old one.
    cache.keys = mx.slice_update(cache.keys, key, start, axes=[2])
    cache.values = mx.slice_update(cache.values, value, start, axes=[2])


def _mask(count: int, held: int, window: int | None) -> mx.array | None:
    """Which keys each new token sees, bool [count, held + count]; None for all."""
    if count == 1:
        return None
    own = mx.arange(held, held + count)[:, None]
    others = mx.arange(held + count)[None]
    seen = others <= own
    return seen if window is None else seen & (others > own - window)


def _capped_attention(
    query: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    cap: float,
    mask: mx.array | None,
) -> mx.array:
    """Attention whose scores are squeezed to (-cap, cap) before the softmax (gemma2)."""
    _, heads, count, size = query.shape
    groups = keys.shape[1]
    grouped = query.reshape(1, groups, heads // groups, count, size)
    scores = (grouped * scale) @ keys[:, :, None].swapaxes(-1, -2)
    scores = mx.tanh(scores / cap) * cap
    if mask is not None:
        scores = mx.where(mask, scores, mx.array(-mx.inf, scores.dtype))
    shares = mx.softmax(scores, axis=-1, precise=True)
    return (shares @ values[:, :, None]).reshape(1, heads, count, size)
