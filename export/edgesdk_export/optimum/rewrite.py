"""Turn a plain ONNX decoder into one that keeps edgesdk's contract (`edgesdk.bundle.graph_io`).

Each layer's attention becomes one GroupQueryAttention over a shared KV buffer. Query and key
arrive rotated: the foreign graph knows its own position embedding, and keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgesdk.bundle.graph_io import (
    HIDDEN_STATES,
    INPUT_IDS,
    LOGITS,
    LOGITS_FROM,
    SEQLENS_K,
    TOTAL_SEQUENCE_LENGTH,
)
from edgesdk.errors import ExportError
from edgesdk_export.optimum.attention_patterns import COPIES, AttentionPattern
from edgesdk_export.optimum.masking import HeadShape, Masking

_CONTRIB = "com.microsoft"
_PREFIX = "edgesdk/"
# What may stand between the head's product and the logits: one token never sees another there.
_AFTER_HEAD = frozenset({"Add", "Mul", "Div", "Tanh", "Cast", "Identity"})


def rewrite(
    model: ir.Model,
    attentions: Sequence[AttentionPattern],
    maskings: Sequence[Masking],
    shape: HeadShape,
) -> None:
    """Change `model` in place.

    Raises:
        ExportError: the graph uses its KV cache, or makes its logits, in an unknown way.
    """
    graph = model.graph
    model.opset_imports[_CONTRIB] = 1
    graph.opset_imports[_CONTRIB] = 1
    _check_outputs(graph, attentions)
    old_inputs = {value.name: value for value in graph.inputs}
    ids = old_inputs[INPUT_IDS]
    build = _NodeBuilder(graph)

    logits_from = _graph_input(LOGITS_FROM, ir.DataType.INT64, [1])
    seqlens = _graph_input(SEQLENS_K, ir.DataType.INT32, ["batch"])
    total = _graph_input(TOTAL_SEQUENCE_LENGTH, ir.DataType.INT32, [])
    sizes = _CallSizes(build, ids, total)

    for attention, masking in zip(attentions, maskings, strict=True):
        _fuse(build, attention, masking, shape, seqlens, total)
    _replace_cache_sizes(attentions, sizes, shape)
    if (positions := old_inputs.get("position_ids")) is not None:
        positions.replace_all_uses_with(_positions(build, sizes, seqlens))
    if (mask := old_inputs.get("attention_mask")) is not None:
        mask.replace_all_uses_with(_all_ones(build, sizes))
    _slice_before_head(build, graph, logits_from)

    caches = [value for a in attentions for value in (a.past_key, a.past_value)]
    ids.shape = ir.Shape(["batch", "sequence"])
    for cache in caches:
        cache.shape = ir.Shape(["batch", shape.kv_heads, "capacity", shape.head_size])
    graph.inputs.clear()
    graph.inputs.extend([ids, logits_from, seqlens, total, *caches])
    _tidy(model)
    _check_leftovers(graph, attentions)


class _NodeBuilder:
    """Adds nodes in front of a graph; the graph is sorted once at the end."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._count = 0

    def op(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self.ops(op_type, inputs, 1, domain, attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        domain: str,
        attributes: dict[str, Any],
    ) -> Sequence[ir.Value]:
        """A node with several outputs."""
        name = f"{_PREFIX}{op_type}_{self._count}"
        self._count += 1
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            outputs=[ir.Value(name=f"{name}_{index}") for index in range(outputs)],
            name=name,
        )
        self.graph.append(node)
        return node.outputs

    def int64(self, values: Sequence[int] | int) -> ir.Value:
        """A constant."""
        name = f"{_PREFIX}constant_{self._count}"
        self._count += 1
        tensor = ir.tensor(np.asarray(values, np.int64), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.shape = ir.Shape(tensor.shape.numpy())
        self.graph.register_initializer(value)
        return value


class _CallSizes:
    """Sizes of this call as int64 [1]: batch, new tokens, tokens before it and after it."""

    def __init__(self, build: _NodeBuilder, ids: ir.Value, total: ir.Value) -> None:
        shape = build.op("Shape", ids)
        self.batch = build.op("Slice", shape, build.int64([0]), build.int64([1]))
        self.new = build.op("Slice", shape, build.int64([1]), build.int64([2]))
        wide = build.op("Cast", total, to=int(ir.DataType.INT64))
        self.total = build.op("Reshape", wide, build.int64([1]))
        self.past = build.op("Sub", self.total, self.new)
        self.build = build


def _fuse(
    build: _NodeBuilder,
    attention: AttentionPattern,
    masking: Masking,
    shape: HeadShape,
    seqlens: ir.Value,
    total: ir.Value,
) -> None:
    query, key, value = (
        build.op(
            "Reshape",
            build.op("Transpose", heads_first, perm=[0, 2, 1, 3]),
            build.int64([0, 0, heads * shape.head_size]),
        )
        for heads_first, heads in (
            (attention.query, shape.heads),
            (attention.key, shape.kv_heads),
            (attention.value, shape.kv_heads),
        )
    )
    output, present_key, present_value = build.ops(
        "GroupQueryAttention",
        [query, key, value, attention.past_key, attention.past_value, seqlens, total],
        3,
        _CONTRIB,
        {
            "num_heads": shape.heads,
            "kv_num_heads": shape.kv_heads,
            "scale": masking.scale,
            "do_rotary": 0,
            "local_window_size": -1 if masking.window is None else masking.window,
        },
    )
    _replace_output(build, attention.output, output, shape)
    for old, new in (
        (attention.present_key, present_key),
        (attention.present_value, present_value),
    ):
        _hand_over_output(build, old, new, shape)


def _replace_output(
    build: _NodeBuilder, heads_first: ir.Value, rows: ir.Value, shape: HeadShape
) -> None:
    """Put `rows` [batch, sequence, heads * head_size] where `heads_first` was used.

    Nearly every graph goes on with exactly that layout, by a transpose and a reshape to three
    dimensions; both then fall away.
    """
    node = _only_user(heads_first)
    if node is not None and node.op_type == "Reshape":
        node = _only_user(node.outputs[0])
    if node is not None and node.op_type == "Transpose":
        permutation = node.attributes.get_ints("perm", ())
        reshape = _only_user(node.outputs[0])
        if (
            tuple(permutation) == (0, 2, 1, 3)
            and reshape is not None
            and reshape.op_type == "Reshape"
            and _length(reshape.inputs[1]) == 3
        ):
            reshape.outputs[0].replace_all_uses_with(rows)
            return
    split = build.op("Reshape", rows, build.int64([0, 0, shape.heads, shape.head_size]))
    heads_first.replace_all_uses_with(build.op("Transpose", split, perm=[0, 2, 1, 3]))


def _hand_over_output(build: _NodeBuilder, old: ir.Value, new: ir.Value, shape: HeadShape) -> None:
    """Make `new` the graph output that `old` (or a copy of it) was."""
    graph = build.graph
    named = [old]
    for value in named:
        named += [node.outputs[0] for node, _ in value.uses() if node.op_type in COPIES]
    for index, value in enumerate(graph.outputs):
        if value in named:
            name = value.name
            value.name = f"{name}_unused"
            new.name = name
            new.type = ir.TensorType(ir.DataType.FLOAT)
            new.shape = ir.Shape(["batch", shape.kv_heads, "capacity", shape.head_size])
            graph.outputs[index] = new


def _replace_cache_sizes(
    attentions: Sequence[AttentionPattern], sizes: _CallSizes, shape: HeadShape
) -> None:
    """Sizes that were read off the growing cache: the shared buffer is always larger."""
    build = sizes.build
    heads, width = build.int64([shape.kv_heads]), build.int64([shape.head_size])
    before = build.op("Concat", sizes.batch, heads, sizes.past, width, axis=0)
    after = build.op("Concat", sizes.batch, heads, sizes.total, width, axis=0)
    for attention in attentions:
        for cache, replacement in (
            (attention.past_key, before),
            (attention.past_value, before),
            (attention.present_key, after),
            (attention.present_value, after),
        ):
            for node in [node for node, _ in cache.uses() if node.op_type == "Shape"]:
                if node.attributes.get_int("start", 0) or "end" in node.attributes:
                    raise _cache_use(attention.layer)
                node.outputs[0].replace_all_uses_with(replacement)


def _positions(build: _NodeBuilder, sizes: _CallSizes, seqlens: ir.Value) -> ir.Value:
    """int64 [batch, sequence]: seqlens_k is the position of each sequence's last token."""
    last = build.op("Cast", seqlens, to=int(ir.DataType.INT64))
    last = build.op("Unsqueeze", last, build.int64([1]))
    count = build.op("Squeeze", sizes.new, build.int64([0]))
    steps = build.op("Range", build.int64(0), count, build.int64(1))
    first = build.op("Sub", build.op("Add", last, build.int64([1])), sizes.new)
    return build.op("Add", first, steps)


def _all_ones(build: _NodeBuilder, sizes: _CallSizes) -> ir.Value:
    """int64 [batch, total]: the mask of a batch without padding."""
    size = build.op("Concat", sizes.batch, sizes.total, axis=0)
    return build.op("Expand", build.int64([1]), size)


def _slice_before_head(build: _NodeBuilder, graph: ir.Graph, logits_from: ir.Value) -> None:
    """Compute logits from position `logits_from` on, and output the hidden states behind them."""
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    node = logits.producer()
    while node is not None and node.op_type in _AFTER_HEAD:
        node = next(
            (
                source.producer()
                for source in node.inputs
                if source is not None and ir.convenience.get_const_tensor(source) is None
            ),
            None,
        )
    if node is None or node.op_type != "MatMul":
        raise ExportError(
            "The ONNX graph's logits are not made by a MatMul.",
            hint="This architecture's head cannot be rewritten.",
        )
    hidden = node.inputs[0]
    assert hidden is not None
    end, axis = build.int64([np.iinfo(np.int64).max]), build.int64([1])
    wanted = build.op("Slice", hidden, logits_from, end, axis)
    node.replace_input_with(0, wanted)
    vocabulary = logits.shape[2] if logits.shape is not None else None
    logits.shape = ir.Shape(["batch", "logits_sequence", vocabulary])
    matrix = node.inputs[1]
    assert matrix is not None
    wanted.name, wanted.type = HIDDEN_STATES, ir.TensorType(ir.DataType.FLOAT)
    columns = matrix.shape[0] if matrix.shape is not None else None
    wanted.shape = ir.Shape(["batch", "logits_sequence", columns])
    graph.outputs.append(wanted)


def _tidy(model: ir.Model) -> None:
    for step in (
        common.RemoveUnusedNodesPass(),
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True),
        common.TopologicalSortPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        step(model)


def _check_outputs(graph: ir.Graph, attentions: Sequence[AttentionPattern]) -> None:
    names = {value.name for value in graph.outputs}
    if LOGITS not in names or len(names) != 1 + 2 * len(attentions):
        extra = sorted(str(name) for name in names if not str(name).startswith("present."))
        raise ExportError(
            f"The ONNX graph's outputs besides its KV cache are {', '.join(extra)}, not logits.",
            hint="Only decoders that map tokens to logits can be exported.",
        )


def _check_leftovers(graph: ir.Graph, attentions: Sequence[AttentionPattern]) -> None:
    for attention in attentions:
        for cache in (attention.past_key, attention.past_value):
            if any(node.op_type != "GroupQueryAttention" for node, _ in cache.uses()):
                raise _cache_use(attention.layer)


def _cache_use(layer: int) -> ExportError:
    return ExportError(
        f"Layer {layer} of the ONNX graph uses its KV cache outside of attention.",
        hint="This architecture cannot be exported for the shared KV cache.",
    )


def _only_user(value: ir.Value) -> ir.Node | None:
    users = [node for node, _ in value.uses()]
    return users[0] if len(users) == 1 else None


def _length(vector: ir.Value | None) -> int | None:
    """Count the numbers of a shape vector."""
    if vector is None:
        return None
    constant = ir.convenience.get_const_tensor(vector)
    if constant is not None:
        return constant.size
    node = vector.producer()
    if node is None or node.op_type != "Concat":
        return None
    parts = [_length(part) or _unsqueezed(part) for part in node.inputs]
    return None if None in parts else sum(part for part in parts if part)


def _unsqueezed(value: ir.Value | None) -> int | None:
    node = None if value is None else value.producer()
    return 1 if node is not None and node.op_type == "Unsqueeze" else None


def _graph_input(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
