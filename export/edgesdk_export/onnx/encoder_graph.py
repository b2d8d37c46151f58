"""Draw an encoder: embeddings, layers in which all tokens see each other, and the score's head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesdk.bundle import encoder_spec as names
from edgesdk.bundle.encoder_spec import EncoderSpec, ScoreHead
from edgesdk.bundle.spec import RopeSpec
from edgesdk_export.onnx.graph_builder import CONTRIB, GraphBuilder, Weights
from edgesdk_export.onnx.operators import linear, lookup
from edgesdk_export.onnx.rope_tables import RopeValues, computed_values

# Added to the score of a token that a window does not reach; the mask of absent tokens is added to
# it, and the sum must stay a number.
_UNSEEN = -1e9


@dataclass(frozen=True)
class _Batch:
    """What all layers read: lengths int32 [batch], the row length int32 [], and their tables."""

    lengths: ir.Value
    total: ir.Value
    steps: ir.Value
    tables: dict[RopeSpec, RopeValues]


def encoder_model(spec: EncoderSpec, weights: Weights) -> ir.Model:
    """Draw the graph that `edgesdk.bundle.encoder_spec` describes."""
    graph = GraphBuilder(weights)
    ids = graph.input(names.INPUT_IDS, ir.DataType.INT64, ["batch", "sequence"])
    lengths = graph.input(names.LENGTHS, ir.DataType.INT32, ["batch"])
    types = None
    if spec.token_types:
        types = graph.input(names.TOKEN_TYPES, ir.DataType.INT64, ["batch", "sequence"])
    batch = _batch(graph, spec, ids, lengths)
    x = _norm(graph, "embed_norm", _embed(graph, spec, ids, types), spec.norm_eps)
    for index in range(spec.layers):
        x = _layer(graph, spec, index, x, batch)
    if spec.norm_placement == "pre":
        x = _norm(graph, "final_norm", x, spec.norm_eps)
    if spec.head is not None:
        scores = _scores(graph, spec, spec.head, x, batch)
        graph.output(scores, names.SCORES, ir.DataType.FLOAT, ["batch", spec.head.labels])
    sizes: list[int | str] = ["batch", "sequence", spec.hidden_size]
    graph.output(x, names.HIDDEN_STATES, ir.DataType.FLOAT, sizes)
    return graph.model(spec.family)


def _batch(graph: GraphBuilder, spec: EncoderSpec, ids: ir.Value, lengths: ir.Value) -> _Batch:
    size = graph.op("Shape", "sequence/size", [ids], start=1, end=2)
    total = graph.op("Squeeze", "sequence/long", [size])
    zero = graph.constant("sequence/zero", 0, np.int64)
    one = graph.constant("sequence/one", 1, np.int64)
    steps = graph.op("Range", "sequence/steps", [zero, total, one])
    short = graph.op("Cast", "sequence/total", [total], to=ir.DataType.INT32.value)
    tables: dict[RopeSpec, RopeValues] = {}
    for name, rope in (("rope", spec.rope), ("local_rope", spec.local_rope)):
        if rope is not None and rope not in tables:
            tables[rope] = computed_values(graph, name, rope, short, spec.context_length)
    return _Batch(lengths, short, steps, tables)


def _embed(
    graph: GraphBuilder, spec: EncoderSpec, ids: ir.Value, types: ir.Value | None
) -> ir.Value:
    x = lookup(graph, "embed", ids, spec.hidden_size)
    if types is not None:
        kinds = lookup(graph, "token_types", types, spec.hidden_size)
        x = graph.op("Add", "embed/with_types", [x, kinds])
    if spec.position_rows:
        first = graph.constant("positions/first", spec.first_position, np.int64)
        steps = graph.output_of("sequence/steps")
        rows = graph.op("Add", "positions/rows", [steps, first])
        places = lookup(graph, "positions", rows, spec.hidden_size)
        x = graph.op("Add", "embed/with_positions", [x, places])
    return x


def _layer(
    graph: GraphBuilder, spec: EncoderSpec, index: int, x: ir.Value, batch: _Batch
) -> ir.Value:
    """Vaswani et al., 2017, arXiv:1706.03762; the norms before or after each part."""
    at = f"layers.{index}."
    if spec.norm_placement == "post":
        x = graph.op("Add", at + "attended", [x, _attention(graph, spec, index, x, batch)])
        x = _norm(graph, at + "attention_norm", x, spec.norm_eps)
        x = graph.op("Add", at + "sum", [x, _mlp(graph, spec, at, x)])
        return _norm(graph, at + "mlp_norm", x, spec.norm_eps)
    normed = _norm(graph, at + "attention_norm", x, spec.norm_eps) if index else x
    x = graph.op("Add", at + "attended", [x, _attention(graph, spec, index, normed, batch)])
    normed = _norm(graph, at + "mlp_norm", x, spec.norm_eps)
    return graph.op("Add", at + "sum", [x, _mlp(graph, spec, at, normed)])


def _attention(
    graph: GraphBuilder, spec: EncoderSpec, index: int, x: ir.Value, batch: _Batch
) -> ir.Value:
    at, window = f"layers.{index}.", spec.windows[index]
    whole = linear(graph, at + "qkv", x, spec.hidden_size)
    thirds = graph.constant("qkv_sizes", [spec.hidden_size] * 3, np.int64)
    query, key, value = graph.ops(
        "Split", at + "split", [whole, thirds], (at + "query", at + "key", at + "value"), axis=-1
    )
    rope = spec.rope if window is None or spec.local_rope is None else spec.local_rope
    if rope is not None:
        query = _rotated(graph, spec, f"{at}q", query, rope, batch)
        key = _rotated(graph, spec, f"{at}k", key, rope, batch)
    seen = None if window is None else _window(graph, window, batch)
    mixed = graph.op(
        "MultiHeadAttention",
        at + "attention",
        [query, key, value, None, batch.lengths, seen],
        domain=CONTRIB,
        num_heads=spec.heads,
    )
    return linear(graph, at + "o", mixed, spec.hidden_size)


def _rotated(
    graph: GraphBuilder, spec: EncoderSpec, at: str, x: ir.Value, rope: RopeSpec, batch: _Batch
) -> ir.Value:
    tables = batch.tables[rope]
    first = graph.constant("rope/first", [0], np.int64)
    return graph.op(
        "RotaryEmbedding",
        f"{at}/rope",
        [x, first, tables.cos, tables.sin],
        domain=CONTRIB,
        num_heads=spec.heads,
        rotary_embedding_dim=rope.rotary_size,
    )


def _window(graph: GraphBuilder, window: int, batch: _Batch) -> ir.Value:
    """float32 [1, 1, sequence, sequence]: 0 where two tokens are `window` apart at most."""
    name = f"window/{window}"
    known = graph.output_of(name)
    if known is not None:
        return known
    axes = (graph.constant(f"axis/{axis}", [axis], np.int64) for axis in (0, 1))
    line, column = (
        graph.op("Unsqueeze", f"{name}/{i}", [batch.steps, axis]) for i, axis in enumerate(axes)
    )
    apart = graph.op("Abs", f"{name}/apart", [graph.op("Sub", f"{name}/sub", [line, column])])
    limit = graph.constant(f"{name}/limit", window, np.int64)
    far = graph.op("Greater", f"{name}/far", [apart, limit])
    unseen = graph.constant("window/unseen", _UNSEEN, np.float32)
    zero = graph.constant("window/zero", 0, np.float32)
    flat = graph.op("Where", f"{name}/flat", [far, unseen, zero])
    outer = graph.constant("axis/outer", [0, 1], np.int64)
    return graph.op("Unsqueeze", name, [flat, outer])


def _mlp(graph: GraphBuilder, spec: EncoderSpec, at: str, x: ir.Value) -> ir.Value:
    up = linear(graph, at + "up", x, spec.hidden_size)
    if spec.gated:
        gate = linear(graph, at + "gate", x, spec.hidden_size)
        active = _activated(graph, at + "active", gate, spec.activation)
        inner = graph.op("Mul", at + "gated", [active, up])
    else:
        inner = _activated(graph, at + "active", up, spec.activation)
    return linear(graph, at + "down", inner, spec.intermediate_size)


def _scores(
    graph: GraphBuilder, spec: EncoderSpec, head: ScoreHead, x: ir.Value, batch: _Batch
) -> ir.Value:
    axis = graph.constant("axis/1", [1], np.int64)
    if head.pooling == "cls":
        first = graph.constant("head/first", 0, np.int64)
        pooled = graph.op("Gather", "head/pooled", [x, first], axis=1)
    else:
        lengths = graph.op("Unsqueeze", "head/lengths", [batch.lengths, axis])
        long = graph.op("Cast", "head/long", [lengths], to=ir.DataType.INT64.value)
        present = graph.op("Less", "head/present", [batch.steps, long])
        mask = graph.op("Cast", "head/mask", [present], to=ir.DataType.FLOAT.value)
        last = graph.constant("axis/2", [2], np.int64)
        column = graph.op("Unsqueeze", "head/column", [mask, last])
        kept = graph.op("Mul", "head/kept", [x, column])
        total = graph.op("ReduceSum", "head/total", [kept, axis], keepdims=0)
        count = graph.op("Cast", "head/count", [lengths], to=ir.DataType.FLOAT.value)
        pooled = graph.op("Div", "head/pooled", [total, count])
    dense = linear(graph, "head.dense", pooled, spec.hidden_size)
    pooled = _activated(graph, "head/active", dense, head.activation)
    if head.normed:
        pooled = _norm(graph, "head.norm", pooled, spec.norm_eps)
    return linear(graph, "head.labels", pooled, spec.hidden_size)


def _activated(graph: GraphBuilder, name: str, x: ir.Value, kind: str) -> ir.Value:
    if kind in ("relu", "tanh"):
        return graph.op(kind.capitalize(), name, [x])
    if kind == "silu":
        return graph.op("QuickGelu", name, [x], domain=CONTRIB, alpha=1.0)
    return graph.op("Gelu" if kind == "gelu" else "FastGelu", name, [x], domain=CONTRIB)


def _norm(graph: GraphBuilder, at: str, x: ir.Value, epsilon: float) -> ir.Value:
    """Ba et al., 2016, arXiv:1607.06450."""
    bias = graph.weight(at + ".bias") if graph.has(at + ".bias") else None
    inputs = [x, graph.weight(at + ".weight"), bias]
    return graph.op("LayerNormalization", f"{at}/norm", inputs, axis=-1, epsilon=epsilon)
