"""Draw the signatures of a decoder's `.tflite` from its spec: see `edgesdk.bundle.litert_io`.

All shapes are fixed. A cache has a place for each position of the window; new keys and values are
written at theirs, and each token sees the places up to its own, or its window's. What lies behind
(padding, what was rewound) is never seen, and is written over in time.
"""

from __future__ import annotations

import numpy as np

from edgesdk.bundle import litert_io
from edgesdk.bundle.graph_io import rope_names, ropes
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.litert.flatbuffer import ModelBuilder, Operator, SignatureBuilder


def draw_decoder(model: ModelBuilder, spec: DecoderSpec, shape: StaticShape) -> None:
    """Add the three signatures to a model that has the weights."""
    _draw_step(model, spec, litert_io.PREFILL, shape.prefill_tokens, shape)
    _draw_step(model, spec, litert_io.DECODE, 1, shape)
    graph = model.graph(litert_io.HEAD)
    states = graph.input(litert_io.HIDDEN_STATES, [1, shape.prefill_tokens, spec.hidden_size])
    rows = graph.reshape(states, [shape.prefill_tokens, spec.hidden_size])
    graph.finish({litert_io.LOGITS: _logits(graph, spec, rows)})


def _draw_step(
    model: ModelBuilder, spec: DecoderSpec, name: str, count: int, shape: StaticShape
) -> None:
    graph = model.graph(name)
    tokens = graph.input(litert_io.TOKENS, [1, count], "int32")
    positions = graph.input(litert_io.POSITIONS, [count], "int32")
    caches = [
        [
            graph.input(cache, [1, spec.kv_heads, shape.window, spec.head_size])
            for cache in litert_io.cache_names(layer)
        ]
        for layer in range(spec.layers)
    ]
    step = _TokenLayers(graph, spec, count, shape, positions)
    x = graph.embedding(graph.weight("embed.weight"), graph.reshape(tokens, [count]))
    if spec.embedding_scale != 1.0:
        x = graph.scaled(x, spec.embedding_scale)
    outputs: dict[str, int] = {}
    for layer in range(spec.layers):
        x, updated = step.layer(layer, x, caches[layer])
        outputs.update(zip(litert_io.cache_names(layer), updated, strict=True))
    x = graph.rms_norm(x, graph.weight("final_norm.weight"), spec.norm_eps)
    if name == litert_io.DECODE:
        outputs[litert_io.LOGITS] = _logits(graph, spec, x)
    outputs[litert_io.HIDDEN_STATES] = graph.reshape(x, [1, count, spec.hidden_size])
    graph.finish(outputs)


def _logits(graph: SignatureBuilder, spec: DecoderSpec, states: int) -> int:
    head = graph.weight("embed.weight" if spec.tied else "head.weight")
    logits = graph.capped(graph.linear(states, head, None), spec.logit_softcap)
    return graph.reshape(logits, [1, *graph.shape(logits)])


class _TokenLayers:
    """What the layers of one graph share: the masks and the rope of its tokens."""

    def __init__(
        self,
        graph: SignatureBuilder,
        spec: DecoderSpec,
        count: int,
        shape: StaticShape,
        positions: int,
    ) -> None:
        self._graph = graph
        self._spec = spec
        self._count = count
        self._window = shape.window
        self._mask_value = shape.mask_value
        self._masks = {seen: self._mask(positions, seen) for seen in dict.fromkeys(spec.windows)}
        self._tables = {
            rope: tuple(
                graph.gather_rows(graph.weight(part), positions) for part in rope_names(name)
            )
            for name, rope in ropes(spec).items()
        }
        # Where new keys and values go: [0, 0, first position, 0].
        first = graph.node(
            Operator.SLICE,
            [positions, *(graph.constant(np.array([at], np.int32)) for at in (0, 1))],
            [1],
            dtype="int32",
        )
        zeros = graph.constant(np.zeros(2, np.int32))
        self._start = graph.concatenate_last([zeros, first, graph.constant(np.zeros(1, np.int32))])

    def layer(self, index: int, x: int, caches: list[int]) -> tuple[int, list[int]]:
        """The states behind a layer, and its caches."""
        normed = self._norm(index, "input_norm", x)
        mixed, updated = self._attention(index, normed, caches)
        x = self._graph.add(x, self._branch(index, "post_attention_norm", mixed))
        normed = self._norm(index, "pre_mlp_norm", x)
        return self._graph.add(
            x, self._branch(index, "post_mlp_norm", self._mlp(index, normed))
        ), updated

    def _attention(self, index: int, x: int, caches: list[int]) -> tuple[int, list[int]]:
        """Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245)."""
        graph, spec, count = self._graph, self._spec, self._count
        query = self._heads(index, "q", x, spec.heads, "q_norm")
        key = self._heads(index, "k", x, spec.kv_heads, "k_norm")
        value = self._heads(index, "v", x, spec.kv_heads, None)
        query, key = self._rotated(index, query), self._rotated(index, key)
        keys = graph.update_cache(caches[0], key, self._start)
        values = graph.update_cache(caches[1], value, self._start)
        # The heads that share keys become rows of one product.
        rows = spec.heads // spec.kv_heads * count
        query = graph.scaled(query, spec.attention_scale)
        query = graph.reshape(query, [1, spec.kv_heads, rows, spec.head_size])
        scores = graph.capped(graph.matmul(query, keys, transposed=True), spec.attention_softcap)
        scores = graph.reshape(scores, [1, spec.heads, count, self._window])
        shares = graph.softmax(graph.add(scores, self._masks[spec.windows[index]]))
        shares = graph.reshape(shares, [1, spec.kv_heads, rows, self._window])
        mixed = graph.matmul(shares, values)
        mixed = self._transposed(graph.reshape(mixed, [1, spec.heads, count, spec.head_size]))
        mixed = graph.reshape(mixed, [count, spec.heads * spec.head_size])
        return self._linear(index, "o", mixed), [keys, values]

    def _mlp(self, index: int, x: int) -> int:
        """down(activation(gate x) * up x); Shazeer, 2020, arXiv:2002.05202."""
        graph = self._graph
        gate, up = self._linear(index, "gate", x), self._linear(index, "up", x)
        if self._spec.activation == "silu":
            active = graph.multiply(gate, graph.unary(Operator.LOGISTIC, gate))
        else:
            active = graph.gelu_tanh(gate)
        return self._linear(index, "down", graph.multiply(active, up))

    def _heads(self, index: int, part: str, x: int, heads: int, norm: str | None) -> int:
        """A projection as [1, heads, tokens, head_size], normed where the spec says so."""
        shape = [1, self._count, heads, self._spec.head_size]
        split = self._graph.reshape(self._linear(index, part, x), shape)
        if norm is not None and self._spec.qk_norm:
            split = self._norm(index, norm, split)
        return self._transposed(split)

    def _transposed(self, x: int) -> int:
        """[1, a, b, size] as [1, b, a, size]."""
        _, a, b, size = self._graph.shape(x)
        if a == 1 or b == 1:
            return self._graph.reshape(x, [1, b, a, size])
        return self._graph.transpose(x, [0, 2, 1, 3])

    def _rotated(self, index: int, x: int) -> int:
        graph, rope = self._graph, self._spec.rope_of(index)
        cos, sin = self._tables[rope]
        half = rope.rotary_size // 2
        left, right = graph.slice_last(x, 0, half), graph.slice_last(x, half, 2 * half)
        parts = [
            graph.subtract(graph.multiply(left, cos), graph.multiply(right, sin)),
            graph.add(graph.multiply(right, cos), graph.multiply(left, sin)),
        ]
        if rope.rotary_size < self._spec.head_size:
            parts.append(graph.slice_last(x, rope.rotary_size, self._spec.head_size))
        return graph.concatenate_last(parts)

    def _mask(self, positions: int, seen: int | None) -> int:
        """What is added to the scores, float32 [tokens, window]."""
        graph = self._graph
        places = graph.constant(np.arange(self._window, dtype=np.int32)[None])
        own = graph.reshape(positions, [self._count, 1])
        hidden = graph.clipped(graph.subtract(places, own), 0, 1)
        if seen is not None and seen < self._window:
            # The last place that is out of sight: own - seen.
            last = graph.subtract(own, graph.constant(np.array([seen - 1], np.int32)))
            behind = graph.clipped(graph.subtract(last, places), 0, 1)
            hidden = graph.add(hidden, behind)
        return graph.scaled(graph.to_float(hidden), self._mask_value)

    def _linear(self, index: int, part: str, x: int) -> int:
        name = f"layers.{index}.{part}"
        has_bias = {
            "q": self._spec.qkv_bias,
            "k": self._spec.qkv_bias,
            "v": self._spec.qkv_bias,
            "o": self._spec.o_bias,
        }.get(part, self._spec.mlp_bias)
        bias = self._graph.weight(f"{name}.bias") if has_bias else None
        return self._graph.linear(x, self._graph.weight(f"{name}.weight"), bias)

    def _norm(self, index: int, name: str, x: int) -> int:
        gain = self._graph.weight(f"layers.{index}.{name}.weight")
        return self._graph.rms_norm(x, gain, self._spec.norm_eps)

    def _branch(self, index: int, norm: str, x: int) -> int:
        """What is added to the residual."""
        return self._norm(index, norm, x) if self._spec.norm_placement == "sandwich" else x
