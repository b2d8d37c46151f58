"""Draw a decoder of fixed shapes: the graphs of `edgesdk.bundle.static_io`.

Only operators that NPUs run: norms are native, attention is two products and a softmax, the mask is
added, and nothing depends on the values of the inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgesdk.bundle import graph_io, static_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.npu.static_linear import has_matrix, linear
from edgesdk_export.onnx.graph_builder import GraphBuilder, Weights
from edgesdk_export.onnx.operators import rms_norm


def static_model(
    spec: DecoderSpec, weights: Weights, shape: StaticShape, *, tokens: int
) -> ir.Model:
    """Draw the graph of so many tokens over stored weights (see `static_weights.py`)."""
    graph = _StaticGraph(GraphBuilder(weights), spec, shape, tokens)
    ports = {
        name: graph.builder.input(name, _TYPES[dtype], dims)
        for name, (dtype, dims) in static_io.input_ports(spec, shape, tokens).items()
    }
    x = graph.embed(ports[static_io.INPUT_IDS])
    outputs: dict[str, ir.Value] = {}
    for layer in range(spec.layers):
        x, new = graph.layer(layer, x, ports)
        outputs.update(zip(static_io.new_names(layer), new, strict=True))
    outputs[static_io.LOGITS], outputs[static_io.HIDDEN_STATES] = graph.head(x)
    for name, (dtype, dims) in static_io.output_ports(spec, shape, tokens).items():
        graph.builder.output(outputs[name], name, _TYPES[dtype], dims)
    return graph.builder.model(spec.family)


_TYPES = {
    "int32": ir.DataType.INT32,
    "float16": ir.DataType.FLOAT16,
    "float32": ir.DataType.FLOAT,
}


@dataclass(frozen=True)
class _StaticGraph:
    """What the parts of a graph are drawn with. Hidden states are F [1, tokens, hidden]."""

    builder: GraphBuilder
    spec: DecoderSpec
    shape: StaticShape
    tokens: int

    def embed(self, ids: ir.Value) -> ir.Value:
        table = self.builder.weight("embed.weight")
        hidden = self.builder.op("Gather", "embed/gather", [table, ids])
        dtype = _TYPES[self.shape.dtype]
        if table.dtype != dtype:
            hidden = self.builder.op("Cast", "embed/cast", [hidden], to=dtype.value)
        return self._times(hidden, "embed/scaled", self.spec.embedding_scale)

    def layer(
        self, layer: int, x: ir.Value, ports: dict[str, ir.Value]
    ) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        """Hidden states after one layer, and its new keys and values."""
        at = f"layers.{layer}."
        branch, new = self._attention(layer, self._norm(at + "input_norm", x), ports)
        x = self._plus(at + "post_attention_norm", x, branch, at + "attention/sum")
        branch = self._mlp(at, self._norm(at + "pre_mlp_norm", x))
        return self._plus(at + "post_mlp_norm", x, branch, at + "mlp/sum"), new

    def head(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Logits and hidden states of the last tokens."""
        op, spec = self.builder.op, self.spec
        rows = min(self.shape.logits_rows, self.tokens)
        if rows < self.tokens:
            start = self._whole("head/start", [self.tokens - rows])
            end, axis = self._whole("head/end", [self.tokens]), self._whole("head/axis", [1])
            x = op("Slice", "head/wanted", [x, start, end, axis])
        normed = self._norm("final_norm", x)
        name = "head" if has_matrix(self.builder, "head") else "embed"
        logits = linear(self.builder, name, normed, spec.hidden_size)
        return self._capped("head", logits, spec.logit_softcap), normed

    def _attention(
        self, layer: int, x: ir.Value, ports: dict[str, ir.Value]
    ) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        """Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245): the queries that share
        a KV head are rows of one product."""
        spec, op, tokens, at = self.spec, self.builder.op, self.tokens, f"layers.{layer}."
        size, group = spec.head_size, spec.heads // spec.kv_heads
        rows, columns = group * tokens, self.shape.window + tokens
        qkv = linear(self.builder, at + "qkv", x, spec.hidden_size)
        heads = (spec.heads, spec.kv_heads, spec.kv_heads)
        split = self._whole("qkv_sizes", [count * size for count in heads])
        parts = self.builder.ops(
            "Split", at + "split", [qkv, split], [at + part for part in "qkv"], axis=-1
        )
        query, key, value = (
            self._heads(at + part, of, count)
            for part, of, count in zip("qkv", parts, heads, strict=True)
        )
        query, key = (
            self._rotated(at + part, of, layer, ports) for part, of in (("q", query), ("k", key))
        )
        # Before the product, which float16 could not hold else.
        query = self._times(query, at + "q/scaled", spec.attention_scale)
        past_key, past_value = (ports[name] for name in static_io.past_names(layer))
        keys = op("Concat", at + "keys", [past_key, key], axis=2)
        values = op("Concat", at + "values", [past_value, value], axis=2)
        turned = op("Transpose", at + "keys/turned", [keys], perm=[0, 1, 3, 2])
        query = self._shaped(at + "q/grouped", query, [1, spec.kv_heads, rows, size])
        scores = op("MatMul", at + "scores", [query, turned])
        scores = self._capped(at + "scores", scores, spec.attention_softcap)
        scores = self._shaped(at + "scores/heads", scores, [1, spec.heads, tokens, columns])
        mask = ports[static_io.mask_name(spec.windows[layer])]
        shares = op("Softmax", at + "shares", [op("Add", at + "masked", [scores, mask])], axis=-1)
        shares = self._shaped(at + "shares/grouped", shares, [1, spec.kv_heads, rows, columns])
        mixed = op("MatMul", at + "mixed", [shares, values])
        mixed = self._shaped(at + "mixed/heads", mixed, [1, spec.heads, tokens, size])
        mixed = op("Transpose", at + "mixed/turned", [mixed], perm=[0, 2, 1, 3])
        mixed = self._shaped(at + "mixed/flat", mixed, [1, tokens, spec.heads * size])
        return linear(self.builder, at + "o", mixed, spec.heads * size), (key, value)

    def _heads(self, at: str, x: ir.Value, count: int) -> ir.Value:
        """F [1, tokens, count * head_size] as [1, count, tokens, head_size], normed where it is a
        query or a key and the model norms these."""
        tokens, size = self.tokens, self.spec.head_size
        if self.builder.has(f"{at}_norm.weight"):
            # Of a norm over four dimensions, Qualcomm's compiler silently makes wrong numbers.
            x = self._shaped(f"{at}/rows", x, [1, tokens * count, size])
            x = self._norm(f"{at}_norm", x)
        x = self._shaped(f"{at}/heads", x, [1, tokens, count, size])
        return self.builder.op("Transpose", f"{at}/turned", [x], perm=[0, 2, 1, 3])

    def _rotated(self, at: str, x: ir.Value, layer: int, ports: dict[str, ir.Value]) -> ir.Value:
        op, size = self.builder.op, self.spec.head_size
        cos, sin = (
            ports[name] for name in graph_io.rope_names(graph_io.rope_name(self.spec, layer))
        )
        half = self.spec.rope_of(layer).rotary_size // 2
        sizes = [half, half, size - 2 * half] if size > 2 * half else [half, half]
        parts = self.builder.ops(
            "Split",
            f"{at}/halves",
            [x, self._whole(f"halves_of_{half}", sizes)],
            [f"{at}/part{index}" for index in range(len(sizes))],
            axis=-1,
        )
        swapped = op("Concat", f"{at}/swapped", [parts[1], parts[0], *parts[2:]], axis=-1)
        straight = op("Mul", f"{at}/straight", [x, cos])
        return op("Add", f"{at}/rope", [straight, op("Mul", f"{at}/crossed", [swapped, sin])])

    def _mlp(self, at: str, x: ir.Value) -> ir.Value:
        """down(activation(gate x) * up x); Shazeer, 2020, arXiv:2002.05202."""
        op, spec = self.builder.op, self.spec
        gate = linear(self.builder, at + "gate", x, spec.hidden_size)
        up = linear(self.builder, at + "up", x, spec.hidden_size)
        inner = gate
        if spec.activation == "gelu_tanh":
            # The same as 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), without a cube that
            # float16 cannot hold.
            slope = 2 * math.sqrt(2 / math.pi)
            square = op("Mul", at + "gelu/square", [gate, gate])
            square = self._times(square, at + "gelu/curve", 0.044715 * slope)
            curve = op("Add", at + "gelu/slope", [square, self._constant(f"plus/{slope}", slope)])
            inner = op("Mul", at + "gelu/inner", [gate, curve])
        share = op("Sigmoid", at + "gate/share", [inner])
        active = op("Mul", at + "gate/active", [gate, share])
        gated = op("Mul", at + "gated", [active, up])
        return linear(self.builder, at + "down", gated, spec.intermediate_size)

    def _plus(self, norm: str, x: ir.Value, branch: ir.Value, name: str) -> ir.Value:
        """x + branch, which is normed first in models that do so."""
        if self.spec.norm_placement == "sandwich":
            branch = self._norm(norm, branch)
        return self.builder.op("Add", name, [x, branch])

    def _norm(self, at: str, x: ir.Value) -> ir.Value:
        # In primitive operators the squares would overflow float16.
        return rms_norm(self.builder, at, x, self.spec.norm_eps)

    def _capped(self, at: str, x: ir.Value, cap: float | None) -> ir.Value:
        """cap * tanh(x / cap)."""
        if cap is None:
            return x
        small = self._times(x, f"{at}/small", 1 / cap)
        return self._times(self.builder.op("Tanh", f"{at}/squashed", [small]), f"{at}/capped", cap)

    def _times(self, x: ir.Value, name: str, factor: float) -> ir.Value:
        if factor == 1.0:
            return x
        return self.builder.op("Mul", name, [x, self._constant(f"times/{factor}", factor)])

    def _shaped(self, name: str, x: ir.Value, dims: list[int]) -> ir.Value:
        target = self._whole(f"shape/{'x'.join(map(str, dims))}", dims)
        return self.builder.op("Reshape", name, [x, target])

    def _constant(self, name: str, value: float) -> ir.Value:
        return self.builder.constant(name, value, self.shape.dtype)

    def _whole(self, name: str, values: npt.ArrayLike) -> ir.Value:
        return self.builder.constant(name, values, np.int64)
