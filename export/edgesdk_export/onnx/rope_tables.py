"""Draw where attention finds the cosines and sines of rotary position embedding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesdk.bundle import graph_io
from edgesdk.bundle.rope import frequencies, switch_of
from edgesdk.bundle.spec import DecoderSpec, RopeSpec
from edgesdk_export.onnx.graph_builder import GraphBuilder


@dataclass(frozen=True)
class RopeValues:
    """The tables of one rope in a graph.

    Attributes:
        cos, sin: float32 [rows, rotary_size / 2].
        offset: int64 [], what to add to a position to get its row; None = nothing.
    """

    cos: ir.Value
    sin: ir.Value
    offset: ir.Value | None = None


def stored_length(spec: DecoderSpec) -> int:
    """For how many positions a file holds rope tables."""
    return min(spec.context_length, graph_io.ROPE_POSITIONS)


def stored_tables(
    graph: GraphBuilder, spec: DecoderSpec, total: ir.Value
) -> Mapping[str, RopeValues]:
    """Tables that the file holds for the first positions, and that longer ones may replace, by
    rope name. `total` is the number of tokens, int32 []."""
    tables: dict[str, RopeValues] = {}
    for name, rope in graph_io.ropes(spec).items():
        cos, sin = (graph.replaceable(part, f"{name}_rows") for part in graph_io.rope_names(name))
        switch = switch_of(rope, spec.context_length)
        offset = None if switch is None else _offset(graph, name, total, switch)
        tables[name] = RopeValues(cos, sin, offset)
    return tables


def computed_tables(
    graph: GraphBuilder, spec: DecoderSpec, layers: Iterable[int], total: ir.Value
) -> Mapping[str, RopeValues]:
    """Tables of just the `total` (int32 []) positions of a whole text, computed in the graph with
    the arithmetic of `edgesdk.bundle.rope.rope_tables`."""
    tables: dict[str, RopeValues] = {}
    for layer in layers:
        name, rope = graph_io.rope_name(spec, layer), spec.rope_of(layer)
        if name not in tables:
            tables[name] = computed_values(graph, name, rope, total, spec.context_length)
    return tables


def computed_values(
    graph: GraphBuilder, name: str, rope: RopeSpec, total: ir.Value, context_length: int
) -> RopeValues:
    """The tables of one rope, as in `computed_tables`."""
    turned = graph.constant(f"{name}/frequencies", frequencies(rope, long=False), np.float32)
    switch = switch_of(rope, context_length)
    if switch is not None:
        stretched = graph.constant(f"{name}/long", frequencies(rope, long=True), np.float32)
        beyond = _beyond(graph, name, total, switch)
        turned = graph.op("Where", f"{name}/turned", [beyond, stretched, turned])
    zero = graph.constant("rope/zero", 0, np.int32)
    one = graph.constant("rope/one", 1, np.int32)
    axis = graph.constant("positions/axis", [1], np.int64)
    counted = graph.op("Range", f"{name}/counted", [zero, total, one])
    column = graph.op("Unsqueeze", f"{name}/column", [counted, axis])
    single = graph.op("Cast", f"{name}/single", [column], to=ir.DataType.FLOAT.value)
    angles = graph.op("Mul", f"{name}/angles", [single, turned])
    factor = graph.constant(f"{name}/factor", rope.attention_factor, np.float32)
    cos, sin = (
        graph.op(
            "Mul", f"{name}/{kind}", [graph.op(kind, f"{name}/plain_{kind}", [angles]), factor]
        )
        for kind in ("Cos", "Sin")
    )
    return RopeValues(cos, sin)


def _offset(graph: GraphBuilder, name: str, total: ir.Value, switch: int) -> ir.Value:
    long = graph.constant(f"positions/{name}/long", switch, np.int64)
    zero = graph.constant("positions/zero", 0, np.int64)
    beyond = _beyond(graph, name, total, switch)
    return graph.op("Where", f"positions/{name}/offset", [beyond, long, zero])


def _beyond(graph: GraphBuilder, name: str, total: ir.Value, switch: int) -> ir.Value:
    limit = graph.constant(f"positions/{name}/limit", switch, np.int32)
    return graph.op("Greater", f"positions/{name}/beyond", [total, limit])
