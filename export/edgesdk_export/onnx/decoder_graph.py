"""Draw a decoder: embedding, layers, head, and the whole graph of `edgesdk.bundle.graph_io`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesdk.bundle import graph_io
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.onnx.attention import SequenceLengths, attention, lengths
from edgesdk_export.onnx.graph_builder import CONTRIB, GraphBuilder, Weights
from edgesdk_export.onnx.operators import (
    ResidualStream,
    linear,
    lookup,
    norm,
    rms_norm,
)
from edgesdk_export.onnx.rope_tables import stored_tables


def decoder_model(spec: DecoderSpec, weights: Weights) -> ir.Model:
    """Draw the graph over stored weights (see `onnx/stored_weights.py` for their names)."""
    graph = GraphBuilder(weights)
    ids = graph.input(graph_io.INPUT_IDS, ir.DataType.INT64, ["batch", "sequence"])
    logits_from = graph.input(graph_io.LOGITS_FROM, ir.DataType.INT64, [1])
    seqlens_k = graph.input(graph_io.SEQLENS_K, ir.DataType.INT32, ["batch"])
    total = graph.input(graph_io.TOTAL_SEQUENCE_LENGTH, ir.DataType.INT32, [])
    cache_shape: list[int | str] = ["batch", spec.kv_heads, "capacity", spec.head_size]
    pasts = []
    for index in range(spec.layers):
        key, value = graph_io.past_names(index)
        pasts.append(
            (
                graph.input(key, ir.DataType.FLOAT, cache_shape),
                graph.input(value, ir.DataType.FLOAT, cache_shape),
            )
        )
    shared = lengths(graph, spec, stored_tables(graph, spec, total), ids, seqlens_k, total)
    stream = embed(graph, spec, ids)
    presents = []
    for index, past in enumerate(pasts):
        stream, keys, values = layer(graph, spec, index, stream, shared, past)
        presents.append((keys, values))
    logits, hidden = head(graph, spec, stream, logits_from)
    for output, name, columns in (
        (logits, graph_io.LOGITS, spec.vocab_size),
        (hidden, graph_io.HIDDEN_STATES, spec.hidden_size),
    ):
        graph.output(output, name, ir.DataType.FLOAT, ["batch", "positions", columns])
    for index, (keys, values) in enumerate(presents):
        key, value = graph_io.present_names(index)
        graph.output(keys, key, ir.DataType.FLOAT, cache_shape)
        graph.output(values, value, ir.DataType.FLOAT, cache_shape)
    return graph.model(spec.family)


def embed(graph: GraphBuilder, spec: DecoderSpec, input_ids: ir.Value) -> ResidualStream:
    """Token ids int64 [batch, sequence] as hidden states."""
    hidden = lookup(graph, "embed", input_ids, spec.hidden_size)
    if spec.embedding_scale != 1.0:
        scale = graph.constant("embed/scale", spec.embedding_scale, np.float32)
        hidden = graph.op("Mul", "embed/scaled", [hidden, scale])
    return ResidualStream(hidden)


def layer(
    graph: GraphBuilder,
    spec: DecoderSpec,
    index: int,
    stream: ResidualStream,
    lengths: SequenceLengths,
    past: tuple[ir.Value, ir.Value] | None,
) -> tuple[ResidualStream, ir.Value, ir.Value]:
    """One decoder layer: the stream after it, and its keys and values."""
    at = f"layers.{index}."
    normed, residual = norm(graph, at + "input_norm", stream, spec.norm_eps)
    branch, keys, values = attention(graph, spec, index, normed, lengths, past)
    if spec.norm_placement == "sandwich":
        branch = rms_norm(graph, at + "post_attention_norm", branch, spec.norm_eps)
    normed, residual = norm(
        graph, at + "pre_mlp_norm", ResidualStream(residual, branch), spec.norm_eps
    )
    branch = _mlp(graph, spec, at, normed)
    if spec.norm_placement == "sandwich":
        branch = rms_norm(graph, at + "post_mlp_norm", branch, spec.norm_eps)
    return ResidualStream(residual, branch), keys, values


def head(
    graph: GraphBuilder, spec: DecoderSpec, stream: ResidualStream, logits_from: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """Draw the logits [batch, positions, vocab] of the stream, from position `logits_from` int64
    [1] on; and return the hidden states [batch, positions, hidden] behind them, too."""
    normed, _ = norm(graph, "final_norm", stream, spec.norm_eps)
    if logits_from is not None:
        end = graph.constant("head/end", [np.iinfo(np.int64).max], np.int64)
        axis = graph.constant("head/axis", [1], np.int64)
        normed = graph.op("Slice", "head/wanted", [normed, logits_from, end, axis])
    logits = linear(graph, "embed" if spec.tied else "head", normed, spec.hidden_size)
    cap = spec.logit_softcap
    if cap is None:
        return logits, normed
    small = graph.op(
        "Mul", "head/small", [logits, graph.constant("head/inverse_cap", 1 / cap, np.float32)]
    )
    squashed = graph.op("Tanh", "head/squashed", [small])
    largest = graph.constant("head/cap", cap, np.float32)
    return graph.op("Mul", "head/capped", [squashed, largest]), normed


def _mlp(graph: GraphBuilder, spec: DecoderSpec, at: str, x: ir.Value) -> ir.Value:
    """down(activation(gate x) * up x); Shazeer, 2020, arXiv:2002.05202."""
    gate = linear(graph, at + "gate", x, spec.hidden_size)
    up = linear(graph, at + "up", x, spec.hidden_size)
    if spec.activation == "silu":
        active = graph.op("QuickGelu", at + "silu", [gate], domain=CONTRIB, alpha=1.0)
    else:
        active = graph.op("FastGelu", at + "gelu", [gate], domain=CONTRIB)
    gated = graph.op("Mul", at + "gated", [active, up])
    return linear(graph, at + "down", gated, spec.intermediate_size)
