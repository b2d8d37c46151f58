"""The whole decoder as one graph, with the inputs and outputs of `edgesdk.bundle.graph_io`."""

from __future__ import annotations

import onnx_ir as ir

from edgesdk.bundle import graph_io
from edgesdk_export.onnx.attention import lengths
from edgesdk_export.onnx.graph import GraphBuilder, Weights
from edgesdk_export.onnx.layers import embed, head, layer
from edgesdk_export.spec import DecoderSpec


def decoder_model(spec: DecoderSpec, weights: Weights) -> ir.Model:
    """Draw the graph over stored weights (see `edgesdk_export.onnx.stored` for their names)."""
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
    shared = lengths(graph, spec, range(spec.layers), ids, seqlens_k, total)
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
