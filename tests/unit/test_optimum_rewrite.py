"""The attention rewrite's refusals, on small graphs made by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from edgesdk_export.optimum.attention_patterns import find_attentions
from edgesdk_export.optimum.masking import HeadShape, measure_masking
from edgesdk_export.optimum.rewrite import rewrite

from edgesdk.errors import ExportError

HEADS = HeadShape(heads=2, kv_heads=2, head_size=8)
CONTEXT = 32


class PlainDecoder:
    """One layer of attention as an exporter writes it, with parts that a test can change."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.cache = ["batch", 2, "past", 8]

    def input(self, name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self.constants.append(value)
        return value

    def op(self, kind: str, *inputs: ir.Value, name: str | None = None, **attributes) -> ir.Value:
        name = name or f"{kind}_{len(self.nodes)}"
        node = ir.node(kind, inputs, attributes, outputs=[ir.Value(name=name)], name=name)
        self.nodes.append(node)
        return node.outputs[0]

    def mask(self, ids: ir.Value, past: ir.Value) -> ir.Value:
        """0 where a token may look, -1e9 where not: [new, total]."""
        zero, one = (self.constant(f"index{i}", np.array(i, np.int64)) for i in (0, 1))
        two = self.constant("two", np.array(2, np.int64))
        new = self.op("Gather", self.op("Shape", ids), one)
        before = self.op("Gather", self.op("Shape", past), two)
        total = self.op("Add", before, new)
        rows = self.op("Unsqueeze", self.op("Range", before, total, one), one)
        late = self.op("Greater", self.op("Range", zero, total, one), rows)
        masked = self.constant("masked", np.array(-1e9, np.float32))
        return self.op("Where", late, masked, self.constant("seen", np.array(0, np.float32)))

    def add_mask(self, scores: ir.Value, mask: ir.Value) -> ir.Value:
        return self.op("Add", scores, mask)

    def normalise(self, logits: ir.Value) -> ir.Value:
        return self.op("Softmax", logits, axis=-1)

    def grow(self, past: ir.Value, new: ir.Value, name: str) -> ir.Value:
        return self.op("Concat", past, new, axis=-2, name=name)

    def head(self, hidden: ir.Value) -> ir.Value:
        return self.op("MatMul", hidden, self.constant("head", np.eye(16, 40, dtype=np.float32)))

    def model(self) -> ir.Model:
        rng = np.random.default_rng(0)
        ids = self.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
        pasts = [
            self.input(f"past_key_values.0.{part}", ir.DataType.FLOAT, self.cache)
            for part in ("key", "value")
        ]
        table = self.constant("table", rng.normal(size=(40, 16)).astype(np.float32))
        hidden = self.op("Gather", table, ids)
        split = self.constant("split", np.array([0, 0, 2, 8], np.int64))
        heads = [
            self.op("Transpose", self.op("Reshape", hidden, split), perm=[0, 2, 1, 3])
            for _ in range(3)
        ]
        key = self.grow(pasts[0], heads[1], "present.0.key")
        value = self.grow(pasts[1], heads[2], "present.0.value")
        scale = self.constant("scale", np.array(0.25, np.float32))
        turned = self.op("Transpose", key, perm=[0, 1, 3, 2])
        scores = self.op("MatMul", self.op("Mul", heads[0], scale), turned)
        logits = self.add_mask(scores, self.mask(ids, pasts[0]))
        mixed = self.op("MatMul", self.normalise(logits), value)
        merged = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        merge = self.constant("merge", np.array([0, 0, 16], np.int64))
        logits = self.head(self.op("Reshape", merged, merge))
        logits.name = "logits"
        for output in (logits, key, value):
            output.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            [ids, *pasts],
            [logits, key, value],
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": 18},
            name="plain",
        )
        return ir.Model(graph, ir_version=10)


def measured(model: ir.Model, tmp_path):
    attentions = find_attentions(model.graph)
    found = measure_masking(model.graph, attentions, HEADS, CONTEXT, tmp_path)
    return attentions, list(found)


def test_scale_and_causal_mask_are_measured_and_fused(tmp_path):
    model = PlainDecoder().model()
    attentions, maskings = measured(model, tmp_path)
    assert maskings[0].scale == pytest.approx(0.25)
    assert maskings[0].window is None
    rewrite(model, attentions, maskings, HEADS)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("GroupQueryAttention") == 1
    assert not {"Softmax", "Where", "Range", "Concat"} & set(kinds)
    assert [value.name for value in model.graph.inputs][1:4] == [
        "logits_from",
        "seqlens_k",
        "total_sequence_length",
    ]


def test_a_sliding_window_is_measured(tmp_path):
    class Windowed(PlainDecoder):
        def mask(self, ids, past):
            causal = super().mask(ids, past)
            rows = next(node for node in self.nodes if node.op_type == "Unsqueeze").outputs[0]
            columns = [node for node in self.nodes if node.op_type == "Range"][1].outputs[0]
            reach = self.op("Sub", rows, self.constant("five", np.array(5, np.int64)))
            far = self.op("LessOrEqual", columns, reach)
            return self.op("Where", far, self.constant("far", np.array(-1e9, np.float32)), causal)

    _, maskings = measured(Windowed().model(), tmp_path)
    assert maskings[0].window == 5


def test_a_position_bias_is_refused(tmp_path):
    class Biased(PlainDecoder):
        def add_mask(self, scores, mask):
            slopes = self.constant("slopes", np.array([[[0.5]], [[0.25]]], np.float32))
            columns = [node for node in self.nodes if node.op_type == "Range"][1].outputs[0]
            places = self.op("Cast", columns, to=int(ir.DataType.FLOAT))
            biased = self.op("Add", scores, self.op("Mul", slopes, places))
            return super().add_mask(biased, mask)

    with pytest.raises(ExportError, match=r"Layer 0 .* adds a bias to its attention scores"):
        measured(Biased().model(), tmp_path)


def test_a_soft_cap_is_refused(tmp_path):
    class Capped(PlainDecoder):
        def add_mask(self, scores, mask):
            return super().add_mask(self.op("Tanh", scores), mask)

    with pytest.raises(ExportError, match=r"Layer 0 .* caps its attention scores"):
        measured(Capped().model(), tmp_path)


def test_attention_to_later_tokens_is_refused(tmp_path):
    class Bidirectional(PlainDecoder):
        def add_mask(self, scores, mask):
            nothing = self.constant("nothing", np.array(0, np.float32))
            return self.op("Add", scores, nothing)

    with pytest.raises(ExportError, match="neither causal nor a sliding window"):
        measured(Bidirectional().model(), tmp_path)


def test_attention_without_a_softmax_says_so():
    class Linear(PlainDecoder):
        def normalise(self, logits):
            return self.op("Relu", logits)

    with pytest.raises(ExportError, match=r"Layer 0 .* no Softmax stands before"):
        find_attentions(Linear().model().graph)


def test_a_cache_that_is_not_appended_to_says_what_makes_it():
    class Additive(PlainDecoder):
        def grow(self, past, new, name):
            return self.op("Add", past, new, name=name)

    with pytest.raises(ExportError, match=r"present\.0\.key is made by Add, not by a Concat"):
        find_attentions(Additive().model().graph)


def test_a_cache_that_grows_at_its_front_is_refused():
    class Reversed(PlainDecoder):
        def grow(self, past, new, name):
            return super().grow(new, past, name)

    with pytest.raises(ExportError, match=r"present\.0\.key is not past_key_values\.0\.key with"):
        find_attentions(Reversed().model().graph)


def test_a_graph_without_a_cache_says_so():
    model = PlainDecoder().model()
    del model.graph.outputs[1:]
    with pytest.raises(ExportError, match=r"no output present\.0\.key: it keeps no KV cache"):
        find_attentions(model.graph)


def test_logits_that_no_product_makes_are_refused(tmp_path):
    class Headless(PlainDecoder):
        def head(self, hidden):
            return self.op("Softmax", hidden)

    model = Headless().model()
    attentions, maskings = measured(model, tmp_path)
    with pytest.raises(ExportError, match="logits are not made by a MatMul"):
        rewrite(model, attentions, maskings, HEADS)


def test_another_use_of_the_cache_is_refused(tmp_path):
    class Peeking(PlainDecoder):
        def head(self, hidden):
            cache = next(n for n in self.nodes if n.name == "present.0.key").inputs[0]
            total = self.op("ReduceSum", cache, keepdims=0)
            return super().head(self.op("Add", hidden, total))

    model = Peeking().model()
    attentions, maskings = measured(model, tmp_path)
    with pytest.raises(ExportError, match=r"Layer 0 .* uses its KV cache outside of attention"):
        rewrite(model, attentions, maskings, HEADS)
