"""Draw grouped-query attention with its projections, head norms and rope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesdk.bundle.graph_io import rope_name
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.onnx.graph_builder import CONTRIB, GraphBuilder
from edgesdk_export.onnx.operators import linear, rms_norm
from edgesdk_export.onnx.rope_tables import RopeValues

# onnxruntime's attention rotates heads whose sizes are multiples of this.
_ROPE_MULTIPLE = 16


@dataclass(frozen=True)
class SequenceLengths:
    """Lengths and positions of the sequences; the same for all layers.

    Attributes:
        seqlens_k: int32 [batch], tokens after this call, minus 1.
        total: int32 [], the largest number of tokens after this call.
        tables: rope name -> its cosines and sines.
        positions: rope name -> int64 [batch, sequence], rows of the rope's tables; a rope is
            missing where the attention operator's own counting is right.
    """

    seqlens_k: ir.Value
    total: ir.Value
    tables: Mapping[str, RopeValues]
    positions: Mapping[str, ir.Value]


def attention_rotates(spec: DecoderSpec, layer: int) -> bool:
    """Whether onnxruntime's attention operator can apply this layer's rope itself."""
    return not (spec.head_size % _ROPE_MULTIPLE or spec.rope_of(layer).rotary_size % _ROPE_MULTIPLE)


def lengths(
    graph: GraphBuilder,
    spec: DecoderSpec,
    tables: Mapping[str, RopeValues],
    tokens: ir.Value,
    seqlens_k: ir.Value,
    total: ir.Value,
) -> SequenceLengths:
    """Lengths for the layers whose ropes are in `tables`; `tokens` is any value [batch, sequence,
    ...]."""
    positions: dict[str, ir.Value] = {}
    counted: ir.Value | None = None
    for layer in range(spec.layers):
        name = rope_name(spec, layer)
        if name not in tables or name in positions:
            continue
        offset = tables[name].offset
        if offset is None and attention_rotates(spec, layer):
            continue
        if counted is None:
            counted = _counted(graph, tokens, seqlens_k)
        rows = counted
        if offset is not None:
            rows = graph.op("Add", f"positions/{name}/rows", [counted, offset])
        positions[name] = rows
    return SequenceLengths(seqlens_k, total, tables, positions)


def attention(
    graph: GraphBuilder,
    spec: DecoderSpec,
    layer: int,
    x: ir.Value,
    lengths: SequenceLengths,
    past: tuple[ir.Value, ir.Value] | None,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Ainslie et al., 2023, arXiv:2305.13245.

    Returns the branch [batch, sequence, hidden] and the layer's keys and values after the call.
    `past` is None where the graph sees a whole text at once.
    """
    at = f"layers.{layer}."
    query = linear(graph, at + "qkv", x, spec.hidden_size)
    key: ir.Value | None = None
    value: ir.Value | None = None
    fused_rope = attention_rotates(spec, layer)
    tables = lengths.tables[rope_name(spec, layer)]
    positions = lengths.positions.get(rope_name(spec, layer))
    if spec.qk_norm or not fused_rope:
        query, key, value = _split(graph, spec, at, query)
        if spec.qk_norm:
            query = _head_norm(graph, spec, at + "q_norm", query, spec.heads)
            key = _head_norm(graph, spec, at + "k_norm", key, spec.kv_heads)
        if not fused_rope:
            at_rows = (positions, tables.cos, tables.sin)
            query = _rotate(graph, spec, layer, "q", query, spec.heads, at_rows)
            key = _rotate(graph, spec, layer, "k", key, spec.kv_heads, at_rows)
    window = spec.windows[layer]
    mixed, keys, values = graph.ops(
        "GroupQueryAttention",
        at + "attention",
        [
            *(query, key, value),
            *(past or (None, None)),
            *(lengths.seqlens_k, lengths.total),
            *((tables.cos, tables.sin, positions) if fused_rope else ()),
        ],
        (at + "mixed", at + "keys", at + "values"),
        domain=CONTRIB,
        num_heads=spec.heads,
        kv_num_heads=spec.kv_heads,
        scale=spec.attention_scale,
        softcap=spec.attention_softcap or 0.0,
        local_window_size=-1 if window is None else window,
        do_rotary=int(fused_rope),
    )
    branch = linear(graph, at + "o", mixed, spec.heads * spec.head_size)
    return branch, keys, values


def _counted(graph: GraphBuilder, tokens: ir.Value, seqlens_k: ir.Value) -> ir.Value:
    """Count the positions of the new tokens, the last of which is seqlens_k."""
    zero = graph.constant("positions/zero", 0, np.int64)
    one = graph.constant("positions/one", 1, np.int64)
    axis = graph.constant("positions/axis", [1], np.int64)
    size = graph.op("Shape", "positions/size", [tokens], start=1, end=2)
    new = graph.op("Squeeze", "positions/new", [size])
    steps = graph.op("Range", "positions/steps", [zero, new, one])
    last = graph.op("Cast", "positions/last", [seqlens_k], to=ir.DataType.INT64.value)
    after = graph.op("Add", "positions/after", [last, one])
    first = graph.op("Sub", "positions/first", [after, new])
    column = graph.op("Unsqueeze", "positions/column", [first, axis])
    return graph.op("Add", "positions/counted", [column, steps])


def _split(
    graph: GraphBuilder, spec: DecoderSpec, at: str, qkv: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    q, kv = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    sizes = graph.constant("qkv_sizes", [q, kv, kv], np.int64)
    query, key, value = graph.ops(
        "Split", at + "split", [qkv, sizes], (at + "query", at + "key", at + "value"), axis=-1
    )
    return query, key, value


def _head_norm(
    graph: GraphBuilder, spec: DecoderSpec, at: str, x: ir.Value, heads: int
) -> ir.Value:
    apart = graph.constant(f"heads/{heads}", [0, 0, heads, spec.head_size], np.int64)
    together = graph.constant(f"heads/{heads}/flat", [0, 0, heads * spec.head_size], np.int64)
    x = graph.op("Reshape", f"{at}/heads", [x, apart])
    x = rms_norm(graph, at, x, spec.norm_eps)
    return graph.op("Reshape", f"{at}/flat", [x, together])


def _rotate(
    graph: GraphBuilder,
    spec: DecoderSpec,
    layer: int,
    part: str,
    x: ir.Value,
    heads: int,
    at_rows: tuple[ir.Value | None, ir.Value, ir.Value],
) -> ir.Value:
    return graph.op(
        "RotaryEmbedding",
        f"layers.{layer}.{part}/rope",
        [x, *at_rows],
        domain=CONTRIB,
        num_heads=heads,
        rotary_embedding_dim=spec.rope_of(layer).rotary_size,
    )
