"""Draw a decoder as a function of an ML Program, for a fixed number of tokens.

All numbers are float16: that is what Apple's Neural Engine computes in, and what a state holds.
The inputs, states and outputs are those of `edgesdk.bundle.coreml_io`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgesdk.bundle import coreml_io
from edgesdk.bundle.graph_io import rope_name, ropes
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.coreml.mil import INT32, MilFunction, MilValue, Shape
from edgesdk_export.coreml.weights import WeightFile

_LAST = -1


@dataclass(frozen=True)
class _Step:
    """What the layers of one function share.

    Attributes:
        start, end: int32 [1], the places of the cache that the tokens take.
        masks: window -> what is added to the scores [1, kv_heads, queries, room].
        rotations: rope name -> cosines and sines.
    """

    start: MilValue
    end: MilValue
    masks: dict[int | None, MilValue]
    rotations: dict[str, tuple[MilValue, MilValue]]


def decoder_function(
    name: str, spec: DecoderSpec, weights: WeightFile, size: int, room: int
) -> MilFunction:
    """Draw the function of `size` tokens, over a cache with places for `room`."""
    return _Drawing(name, spec, weights, size, room).draw()


class _Drawing:
    def __init__(
        self, name: str, spec: DecoderSpec, weights: WeightFile, size: int, room: int
    ) -> None:
        self._function = MilFunction(name)
        self._spec = spec
        self._weights = weights
        self._size = size
        self._room = room
        self._zeros: dict[int, MilValue] = {}

    def draw(self) -> MilFunction:
        spec, size, graph = self._spec, self._size, self._function
        ids = graph.input(coreml_io.INPUT_IDS, (1, size), INT32)
        step = self._step()
        states = {
            name: graph.state(name, coreml_io.cache_shape(spec, self._room))
            for name in (coreml_io.KEY_CACHE, coreml_io.VALUE_CACHE)
        }
        embedding = self._weights.matrix(graph, "embed", spec.hidden_size)
        x = graph.op(
            "gather",
            "embedded",
            (1, size, spec.hidden_size),
            x=embedding,
            indices=ids,
            axis=np.int32(0),
            batch_dims=np.int32(0),
            validate_indices=False,
        )
        if spec.embedding_scale != 1.0:
            x = self._binary("mul", "embedded.scaled", x, spec.embedding_scale)
        for index in range(spec.layers):
            at = f"layers.{index}."
            normed = self._norm(f"{at}input_norm", x)
            branch = self._attention(index, normed, step, states)
            x = self._add(f"{at}attended", x, branch, f"{at}post_attention_norm")
            branch = self._mlp(at, self._norm(f"{at}pre_mlp_norm", x))
            x = self._add(f"{at}left", x, branch, f"{at}post_mlp_norm")
        hidden = self._norm("final_norm", x, coreml_io.HIDDEN_STATES)
        self._head(hidden, embedding)
        graph.output(hidden)
        return graph

    def _step(self) -> _Step:
        spec, size, graph = self._spec, self._size, self._function
        start = graph.input(coreml_io.POSITION, (1,), INT32)
        end = self._binary("add", "end_position", start, np.int32(size))
        masks = {}
        for window, name in coreml_io.mask_names(spec).items():
            mask = graph.input(name, (1, 1, size, self._room))
            groups = spec.heads // spec.kv_heads
            if groups > 1:
                # The queries of all heads that share a key head stand below one another.
                mask = graph.op(
                    "concat",
                    f"{name}_of_heads",
                    (1, 1, groups * size, self._room),
                    values=[mask] * groups,
                    axis=np.int32(2),
                    interleave=False,
                )
            masks[window] = mask
        rotations = {}
        for rope in ropes(spec):
            cosines, sines = (
                graph.input(name, (1, 1, size, spec.head_size))
                for name in coreml_io.rope_names(rope)
            )
            rotations[rope] = (cosines, sines)
        return _Step(start, end, masks, rotations)

    def _head(self, hidden: MilValue, embedding: MilValue) -> None:
        spec, graph = self._spec, self._function
        head = embedding if spec.tied else self._weights.matrix(graph, "head", spec.hidden_size)
        shape = (1, self._size, spec.vocab_size)
        cap = spec.logit_softcap
        name = coreml_io.LOGITS if cap is None else "logits_before_cap"
        bias = self._no_bias(spec.vocab_size)
        logits = graph.op("linear", name, shape, x=hidden, weight=head, bias=bias)
        if cap is not None:
            logits = self._capped(coreml_io.LOGITS, logits, cap)
        graph.output(logits)

    def _attention(
        self, index: int, x: MilValue, step: _Step, states: dict[str, MilValue]
    ) -> MilValue:
        """Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245)."""
        spec, size, graph, at = self._spec, self._size, self._function, f"layers.{index}."
        q_rows, kv_rows = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
        packed = self._linear(f"{at}qkv", x, spec.hidden_size, q_rows + 2 * kv_rows)
        parts = graph.ops(
            "split",
            [
                MilValue(f"{at}{part}", (1, size, rows))
                for part, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))
            ],
            x=packed,
            split_sizes=np.array([q_rows, kv_rows, kv_rows], np.int32),
            axis=np.int32(_LAST),
        )
        query, key, value = (
            self._reshape(f"{at}{part}.heads", each, (1, size, heads, spec.head_size))
            for part, each, heads in zip(
                "qkv", parts, (spec.heads, spec.kv_heads, spec.kv_heads), strict=True
            )
        )
        if spec.qk_norm:
            query, key = self._norm(f"{at}q_norm", query), self._norm(f"{at}k_norm", key)
        query, key, value = (
            self._heads_first(f"{at}{part}.first", each)
            for part, each in (("q", query), ("k", key), ("v", value))
        )
        rotation = step.rotations[rope_name(spec, index)]
        half = spec.rope_of(index).rotary_size // 2
        query = self._rotate(f"{at}q", query, rotation, half)
        key = self._rotate(f"{at}k", key, rotation, half)
        keys = self._cached(index, coreml_io.KEY_CACHE, key, step, states)
        values = self._cached(index, coreml_io.VALUE_CACHE, value, step, states)
        mixed = self._mix(index, query, keys, values, step)
        together = self._reshape(f"{at}together", mixed, (1, size, q_rows))
        return self._linear(f"{at}o", together, q_rows, spec.hidden_size)

    def _mix(
        self, index: int, query: MilValue, keys: MilValue, values: MilValue, step: _Step
    ) -> MilValue:
        """What each token takes from the values that it sees, [1, size, heads, head_size]."""
        spec, size, graph, at = self._spec, self._size, self._function, f"layers.{index}."
        rows = spec.heads // spec.kv_heads * size
        # Scaled before the product, which float16 could not hold otherwise.
        query = self._binary("mul", f"{at}q.scaled", query, spec.attention_scale)
        query = self._reshape(f"{at}q.grouped", query, (1, spec.kv_heads, rows, spec.head_size))
        shape = (1, spec.kv_heads, rows, self._room)
        scores = self._matmul(f"{at}scores", query, keys, shape, transposed=True)
        if spec.attention_softcap is not None:
            scores = self._capped(f"{at}scores.capped", scores, spec.attention_softcap)
        mask = step.masks[spec.windows[index]]
        scores = graph.op("add", f"{at}scores.masked", shape, x=scores, y=mask)
        shares = graph.op("softmax", f"{at}shares", shape, x=scores, axis=np.int32(_LAST))
        mixed = self._matmul(f"{at}mixed", shares, values, query.shape, transposed=False)
        shape = (1, spec.heads, size, spec.head_size)
        return self._heads_first(f"{at}mixed.last", self._reshape(f"{at}mixed.heads", mixed, shape))

    def _cached(
        self,
        index: int,
        cache: str,
        new: MilValue,
        step: _Step,
        states: dict[str, MilValue],
    ) -> MilValue:
        """Put new keys or values of a layer into the cache, and read all of them."""
        spec, graph, name = self._spec, self._function, f"layers.{index}.{cache}"
        state = states[cache]
        held = graph.op("read_state", f"{name}.before", state.shape, input=state)
        begin, end = (
            graph.op(
                "concat",
                f"{name}.{which}",
                (4,),
                values=[
                    self._number(layer),
                    self._number(heads),
                    place,
                    self._number(values),
                ],
                axis=np.int32(0),
                interleave=False,
            )
            for which, layer, heads, place, values in (
                ("begin", index, 0, step.start, 0),
                ("end", index + 1, spec.kv_heads, step.end, spec.head_size),
            )
        )
        updated = graph.op(
            "slice_update", f"{name}.after", state.shape, x=held, update=new, begin=begin, end=end
        )
        written = graph.write_state(state, updated)
        shape = (1, *state.shape[1:])
        return graph.op(
            "slice_by_size",
            name,
            shape,
            x=written,
            begin=np.array([index, 0, 0, 0], np.int32),
            size=np.array(shape, np.int32),
        )

    def _number(self, value: int) -> MilValue:
        return self._function.constant(np.array([value], np.int32))

    def _rotate(
        self, name: str, heads: MilValue, rotation: tuple[MilValue, MilValue], half: int
    ) -> MilValue:
        """Rotate heads by their positions, half-split (Su et al., 2021, arXiv:2104.09864)."""
        graph, shape = self._function, heads.shape
        rest = shape[-1] - 2 * half
        sizes = [half, half, *([rest] if rest else [])]
        parts = graph.ops(
            "split",
            [MilValue(f"{name}.part{i}", (*shape[:-1], size)) for i, size in enumerate(sizes)],
            x=heads,
            split_sizes=np.array(sizes, np.int32),
            axis=np.int32(_LAST),
        )
        exchanged = graph.op(
            "concat",
            f"{name}.exchanged",
            shape,
            values=[parts[1], parts[0], *parts[2:]],
            axis=np.int32(_LAST),
            interleave=False,
        )
        left = graph.op("mul", f"{name}.left", shape, x=heads, y=rotation[0])
        right = graph.op("mul", f"{name}.right", shape, x=exchanged, y=rotation[1])
        return graph.op("add", f"{name}.rotated", shape, x=left, y=right)

    def _mlp(self, at: str, x: MilValue) -> MilValue:
        """down(activation(gate x) * up x); Shazeer, 2020, arXiv:2002.05202."""
        spec, graph = self._spec, self._function
        inner = spec.intermediate_size
        gate = self._linear(f"{at}gate", x, spec.hidden_size, inner)
        up = self._linear(f"{at}up", x, spec.hidden_size, inner)
        if spec.activation == "silu":
            active = graph.op("silu", f"{at}active", gate.shape, x=gate)
        else:
            active = graph.op("gelu", f"{at}active", gate.shape, x=gate, mode="TANH_APPROXIMATION")
        gated = graph.op("mul", f"{at}gated", gate.shape, x=active, y=up)
        return self._linear(f"{at}down", gated, inner, spec.hidden_size)

    def _add(self, name: str, x: MilValue, branch: MilValue, norm: str) -> MilValue:
        """The residual and a branch, after its norm where the decoder has one."""
        if self._spec.norm_placement == "sandwich":
            branch = self._norm(norm, branch)
        return self._function.op("add", name, x.shape, x=x, y=branch)

    def _norm(self, name: str, x: MilValue, output: str | None = None) -> MilValue:
        """An RMS norm over the last axis (Zhang and Sennrich, 2019, arXiv:1910.07467).

        Values are divided by the largest first: the squares of a real model's states are beyond
        float16, and Core ML has no such norm of its own.
        """
        graph, shape = self._function, x.shape
        one = (*shape[:-1], 1)
        root = math.sqrt(self._spec.norm_eps)
        size = graph.op("abs", f"{name}.size", shape, x=x)
        largest = self._reduced("reduce_max", f"{name}.largest", size, one)
        # Of states that are all tiny the epsilon decides, which must not be divided by nothing.
        unit = self._binary("maximum", f"{name}.unit", largest, root)
        small = graph.op("real_div", f"{name}.small", shape, x=x, y=unit)
        squares = graph.op("mul", f"{name}.squares", shape, x=small, y=small)
        mean = self._reduced("reduce_mean", f"{name}.mean", squares, one)
        floor = graph.op(
            "real_div", f"{name}.floor", one, x=graph.constant(np.float16(root)), y=unit
        )
        squared_floor = graph.op("mul", f"{name}.squared_floor", one, x=floor, y=floor)
        total = graph.op("add", f"{name}.total", one, x=mean, y=squared_floor)
        inverse = graph.op("rsqrt", f"{name}.inverse", one, x=total, epsilon=np.float16(1e-7))
        normed = graph.op("mul", f"{name}.normed", shape, x=small, y=inverse)
        gain = self._weights.vector(graph, f"{name}.weight")
        return graph.op("mul", output or f"{name}.scaled", shape, x=normed, y=gain)

    def _reduced(self, kind: str, name: str, x: MilValue, shape: Shape) -> MilValue:
        axes = np.array([_LAST], np.int32)
        return self._function.op(kind, name, shape, x=x, axes=axes, keep_dims=True)

    def _capped(self, name: str, x: MilValue, cap: float) -> MilValue:
        """cap * tanh(x / cap)."""
        small = self._binary("mul", f"{name}.small", x, 1 / cap)
        squashed = self._function.op("tanh", f"{name}.squashed", x.shape, x=small)
        return self._binary("mul", name, squashed, cap)

    def _linear(self, name: str, x: MilValue, columns: int, rows: int) -> MilValue:
        """x times a stored matrix, plus its bias."""
        graph = self._function
        weight = self._weights.matrix(graph, name, columns)
        if self._weights.has(f"{name}.bias"):
            bias = self._weights.vector(graph, f"{name}.bias")
        else:
            bias = self._no_bias(rows)
        shape = (*x.shape[:-1], rows)
        return graph.op("linear", f"{name}.product", shape, x=x, weight=weight, bias=bias)

    def _no_bias(self, rows: int) -> MilValue:
        if rows not in self._zeros:
            self._zeros[rows] = self._weights.zeros(self._function, rows)
        return self._zeros[rows]

    def _matmul(
        self, name: str, x: MilValue, y: MilValue, shape: Shape, *, transposed: bool
    ) -> MilValue:
        return self._function.op(
            "matmul", name, shape, x=x, y=y, transpose_x=False, transpose_y=transposed
        )

    def _heads_first(self, name: str, x: MilValue) -> MilValue:
        """Exchange tokens and heads."""
        a, b, c, d = x.shape
        perm = np.array([0, 2, 1, 3], np.int32)
        return self._function.op("transpose", name, (a, c, b, d), x=x, perm=perm)

    def _reshape(self, name: str, x: MilValue, shape: Shape) -> MilValue:
        return self._function.op("reshape", name, shape, x=x, shape=np.array(shape, np.int32))

    def _binary(self, kind: str, name: str, x: MilValue, y: float | np.int32) -> MilValue:
        """An operation of a value and a number of its type."""
        number = y if isinstance(y, np.int32) else np.float16(y)
        return self._function.op(kind, name, x.shape, x=x, y=number)
