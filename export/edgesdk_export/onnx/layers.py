"""Embedding, decoder layer and head: the parts that whole models and single parts are made of."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgesdk_export.onnx.attention import Lengths, attention
from edgesdk_export.onnx.blocks import Stream, block_scales, block_size, linear, norm, rms_norm
from edgesdk_export.onnx.graph import CONTRIB, GraphBuilder, sizes
from edgesdk_export.spec import DecoderSpec


def embed(graph: GraphBuilder, spec: DecoderSpec, input_ids: ir.Value) -> Stream:
    """Token ids int64 [batch, sequence] as hidden states."""
    if graph.has("embed.rows"):
        coded = graph.has("embed.scale_codes")
        blocks = sizes(graph.weight("embed.scale_codes" if coded else "embed.scales"))[1]
        rows = graph.weight("embed.rows")
        hidden = graph.op(
            "GatherBlockQuantized",
            "embed/gather",
            [
                rows,
                input_ids,
                block_scales(graph, "embed"),
                graph.weight("embed.zero_points") if graph.has("embed.zero_points") else None,
            ],
            domain=CONTRIB,
            bits=8 * sizes(rows)[1] // spec.hidden_size,
            block_size=block_size(spec.hidden_size, blocks),
            gather_axis=0,
            quantize_axis=1,
        )
    else:
        table = graph.weight("embed.weight")
        hidden = graph.op("Gather", "embed/gather", [table, input_ids])
        if table.dtype != ir.DataType.FLOAT:
            hidden = graph.op("Cast", "embed/cast", [hidden], to=ir.DataType.FLOAT.value)
    if spec.embedding_scale != 1.0:
        scale = graph.constant("embed/scale", spec.embedding_scale, np.float32)
        hidden = graph.op("Mul", "embed/scaled", [hidden, scale])
    return Stream(hidden)


def layer(
    graph: GraphBuilder,
    spec: DecoderSpec,
    index: int,
    stream: Stream,
    lengths: Lengths,
    past: tuple[ir.Value, ir.Value] | None,
) -> tuple[Stream, ir.Value, ir.Value]:
    """One decoder layer: the stream after it, and its keys and values."""
    at = f"layers.{index}."
    normed, residual = norm(graph, at + "input_norm", stream, spec.norm_eps)
    branch, keys, values = attention(graph, spec, index, normed, lengths, past)
    if spec.norm_placement == "sandwich":
        branch = rms_norm(graph, at + "post_attention_norm", branch, spec.norm_eps)
    normed, residual = norm(graph, at + "pre_mlp_norm", Stream(residual, branch), spec.norm_eps)
    branch = _mlp(graph, spec, at, normed)
    if spec.norm_placement == "sandwich":
        branch = rms_norm(graph, at + "post_mlp_norm", branch, spec.norm_eps)
    return Stream(residual, branch), keys, values


def head(
    graph: GraphBuilder, spec: DecoderSpec, stream: Stream, logits_from: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """Logits [batch, positions, vocab] of the stream, from position `logits_from` int64 [1] on, and
    what they are made of, [batch, positions, hidden]."""
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
