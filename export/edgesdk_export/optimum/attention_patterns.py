"""Find the attention of each layer in a plain ONNX decoder, by topology alone.

What optimum exports has, for each layer, somewhere:

    present.key   = Concat(past.key, key)                    [batch, kv_heads, total, head_size]
    present.value = Concat(past.value, value)
    scores        = MatMul(query (* scalar), present.key^T (* scalar))
    output        = MatMul(Softmax(masked(scores)), present.value)

with any mix of head repetition, transposes and scalar factors on the way. Node names mean nothing
here. What happens between scores and softmax is not matched but measured (see `masking`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from edgesdk.bundle.graph_io import past_names, present_names
from edgesdk.errors import ExportError

# Ops that may stand between a grown cache and the graph's output (casts: all is float32 here).
COPIES = frozenset({"Identity", "Cast"})
_HINT = "Only decoders with plain softmax attention over a KV cache can be rewritten."

# What may stand between a cached tensor and the product it enters: layout, never content.
_LAYOUT = frozenset({"Transpose", "Unsqueeze", "Squeeze", "Expand", "Reshape", "Identity", "Cast"})
# What may stand between the softmax and the product with the values.
_AFTER_SOFTMAX = frozenset({"Where", "Cast", "Identity", "Dropout"})
# What a scalar that is spelled as a computation (1 / sqrt(shape[-1])) may be made of.
_SCALAR_STEPS = frozenset(
    {"Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity"}
    | {"Sqrt", "Pow", "Reciprocal", "Mul", "Div"}
)


@dataclass(frozen=True)
class ScoreFactor:
    """A scalar that the scores are multiplied by (`inverse`: divided by)."""

    value: ir.Value
    inverse: bool


@dataclass(frozen=True)
class AttentionPattern:
    """The values around one layer's attention. All tensors have four dimensions.

    Attributes:
        query: [batch, heads, sequence, head_size], before its scalar factors.
        key, value: [batch, kv_heads, sequence, head_size], this call's own.
        factors: scalars on query or key.
        scores: the product of query and key, with their factors.
        logits: what goes into the softmax: the scores, scaled and masked.
        output: [batch, heads, sequence, head_size].
    """

    layer: int
    query: ir.Value
    key: ir.Value
    value: ir.Value
    factors: tuple[ScoreFactor, ...]
    scores: ir.Value
    logits: ir.Value
    output: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value


def find_attentions(graph: ir.Graph) -> list[AttentionPattern]:
    """The attention of every layer, in order.

    Raises:
        ExportError: a layer has none of this form; the message says what was missing.
    """
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    layers = 0
    while present_names(layers)[0] in outputs:
        layers += 1
    if layers == 0:
        raise ExportError(
            f"The ONNX graph has no output {present_names(0)[0]}: it keeps no KV cache.", hint=_HINT
        )
    return [_find(layer, inputs, outputs) for layer in range(layers)]


def _find(
    layer: int, inputs: dict[str | None, ir.Value], outputs: dict[str | None, ir.Value]
) -> AttentionPattern:
    pairs = []
    for past_name, present_name in zip(past_names(layer), present_names(layer), strict=True):
        past, present = inputs.get(past_name), outputs.get(present_name)
        if past is None or present is None:
            raise _missing(layer, f"no {past_name} -> {present_name} pair")
        pairs.append((past, *_appended(layer, past, present)))
    (past_key, present_key, key), (past_value, present_value, value) = pairs

    product = _product_with(present_value, _LAYOUT)
    if product is None:
        raise _missing(layer, f"no MatMul takes {present_value.name}")
    softmax = _softmax_behind(_input(product, 0))
    if softmax is None:
        raise _missing(layer, "no Softmax stands before the product with the values")
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        raise _missing(layer, "its Softmax does not run over the keys")
    logits = _input(softmax, 0)
    scores = _product_with(present_key, _LAYOUT | {"Mul", "Div"})
    if scores is None:
        raise _missing(layer, f"no MatMul takes {present_key.name}")
    if not _reaches(logits, scores.outputs[0]):
        raise _missing(layer, "the product of query and key does not reach the Softmax")
    query, factors = _without_factors(_input(scores, 0))
    return AttentionPattern(
        layer=layer,
        query=query,
        key=key,
        value=value,
        factors=(*factors, *_factors_between(layer, present_key, _input(scores, 1))),
        scores=scores.outputs[0],
        logits=logits,
        output=product.outputs[0],
        past_key=past_key,
        past_value=past_value,
        present_key=present_key,
        present_value=present_value,
    )


def _appended(layer: int, past: ir.Value, present: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(the grown cache, what was appended to `past`)."""
    node = present.producer()
    while node is not None and node.op_type in COPIES:
        node = _input(node, 0).producer()
    if node is None or node.op_type != "Concat":
        made_by = "nothing" if node is None else node.op_type
        raise _missing(layer, f"{present.name} is made by {made_by}, not by a Concat")
    before = _input(node, 0)
    while (made := before.producer()) is not None and made.op_type in COPIES:
        before = _input(made, 0)
    if len(node.inputs) != 2 or before is not past:
        raise _missing(layer, f"{present.name} is not {past.name} with new entries appended")
    if node.attributes.get_int("axis", 0) not in (-2, 2):
        raise _missing(layer, f"{present.name} grows along another axis than the third")
    return node.outputs[0], _input(node, 1)


def _product_with(cached: ir.Value, through: frozenset[str]) -> ir.Node | None:
    """The MatMul whose second operand is `cached`, seen through the ops in `through`."""
    pending, seen = [cached], {cached}
    while pending:
        value = pending.pop(0)
        for node, index in value.uses():
            if node.op_type == "MatMul" and index == 1:
                return node
            data = index == 0 or (index == 1 and node.op_type in ("Mul", "Div"))
            if node.op_type in through and data and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return None


def _softmax_behind(value: ir.Value) -> ir.Node | None:
    node = value.producer()
    if node is None or node.op_type == "Softmax":
        return node
    if node.op_type not in _AFTER_SOFTMAX:
        return None
    data = node.inputs[1:] if node.op_type == "Where" else node.inputs[:1]
    found = (_softmax_behind(source) for source in data if source is not None)
    return next((softmax for softmax in found if softmax is not None), None)


def _reaches(late: ir.Value, early: ir.Value) -> bool:
    """Is `early` an ancestor of `late` by a short way?"""
    near = {late}
    for _ in range(8):
        if early in near:
            return True
        near = {source for value in near for source in _sources(value)}
    return False


def _factors_between(layer: int, early: ir.Value, late: ir.Value) -> Iterator[ScoreFactor]:
    """Scalars that are applied on the way from `early` to `late`."""
    while late is not early:
        node = late.producer()
        if node is None:
            raise _missing(layer, f"the keys do not come from {early.name} alone")
        if node.op_type in ("Mul", "Div"):
            late, factors = _without_factors(late)
            if not factors:
                raise _missing(layer, f"the cached keys go through a {node.op_type} by a tensor")
            yield from factors
        else:
            late = _input(node, 0)


def _without_factors(value: ir.Value) -> tuple[ir.Value, list[ScoreFactor]]:
    factors: list[ScoreFactor] = []
    while (node := value.producer()) is not None and node.op_type in ("Mul", "Div"):
        left, right = _input(node, 0), _input(node, 1)
        if _is_scalar(right):
            factors.append(ScoreFactor(right, inverse=node.op_type == "Div"))
            value = left
        elif node.op_type == "Mul" and _is_scalar(left):
            factors.append(ScoreFactor(left, inverse=False))
            value = right
        else:
            break
    return value, factors


def _is_scalar(value: ir.Value) -> bool:
    """One number: a constant of size 1, or computed from a shape and such constants."""
    constant = ir.convenience.get_const_tensor(value)
    if constant is not None:
        return constant.size == 1
    node = value.producer()
    if node is None or node.op_type not in _SCALAR_STEPS:
        return False
    return all(
        _is_shape(source)
        or _is_scalar(source)
        or ir.convenience.get_const_tensor(source) is not None
        for source in node.inputs
        if source is not None
    )


def _is_shape(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Shape"


def _sources(value: ir.Value) -> Iterator[ir.Value]:
    node = value.producer()
    if node is not None:
        yield from (source for source in node.inputs if source is not None)


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _missing(layer: int, what: str) -> ExportError:
    return ExportError(f"Layer {layer} of the ONNX graph: {what}.", hint=_HINT)
