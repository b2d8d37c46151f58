"""Store a rewritten graph's weights in a weight scheme, one matrix at a time.

Matrix products with a constant become MatMulNBits, the token embedding GatherBlockQuantized. Where
head and embedding hold the same numbers (optimum writes them twice) they share one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from edgesdk_quantize.formats import FP16, BlockFormat, FloatFormat

from edgesdk.bundle.graph_io import INPUT_IDS, LOGITS
from edgesdk.errors import ExportError
from edgesdk_export.onnx.external_data import ExternalDataWriter
from edgesdk_export.onnx.graph_builder import CONTRIB
from edgesdk_export.onnx.operators import INT8_ACTIVATIONS
from edgesdk_export.onnx.scheme import OnnxFormat, WeightScheme
from edgesdk_export.onnx.writer import DATA_FILE, MODEL_FILE
from edgesdk_export.selftest.weight_noise import WeightErrors, add_noise

Float32 = npt.NDArray[np.float32]

_ROWS = 2048
# Smaller tensors stay in the graph: shape inference wants to see their values.
_INLINE_BYTES = 1024


def store_quantized(model: ir.Model, scheme: WeightScheme, folder: Path, parameters: int) -> float:
    """Write `model.onnx` and its data file into `folder`; changes `model`.

    Returns:
        bits per weight: all stored weight bytes * 8 / `parameters`.

    Raises:
        ExportError: a weight is NaN or infinite.
    """
    with ExternalDataWriter(folder / DATA_FILE) as data:
        store = _GraphQuantizer(model.graph, data)
        head, embedding = _head(model.graph), _embedding(model.graph)
        if embedding is not None:
            tied = head if head is not None and _same_numbers(embedding, head) else None
            store.embedding(embedding, tied, scheme.embedding)
            head = None if tied is not None else head
        for node in list(model.graph):
            if _constant_matrix(node) is not None:
                store.product(node, scheme.embedding if node is head else scheme.linear)
        store.rest()
    ir.save(model, folder / MODEL_FILE)
    return store.weight_bytes * 8 / parameters


def store_noisy(model: ir.Model, errors: WeightErrors, path: Path) -> None:
    """Write a float graph whose matrices, those that `store_quantized` rounds, have random errors;
    changes `model`."""
    head, embedding = _head(model.graph), _embedding(model.graph)
    sizes = {}
    for node in model.graph:
        weight = _constant_matrix(node)
        if weight is not None:
            sizes[weight] = errors.head if node is head else errors.linear
    if embedding is not None:
        sizes[_value(embedding, 0)] = errors.head
    for weight, size in sizes.items():
        assert weight.name is not None
        weight.const_value = ir.tensor(
            add_noise(_array(weight), size, weight.name), name=weight.name
        )
    ir.save(model, path, external_data=f"{path.name}.data")


class _GraphQuantizer:
    """Replaces nodes over float weights by nodes over stored ones."""

    def __init__(self, graph: ir.Graph, data: ExternalDataWriter) -> None:
        self._graph = graph
        self._data = data
        self._matrices: dict[tuple[str, bool, str], list[ir.Value]] = {}
        self._stored: set[str] = set()
        self.weight_bytes = 0

    def product(self, node: ir.Node, fmt: OnnxFormat) -> None:
        """A MatMul or Gemm whose second operand is constant."""
        weight = _constant_matrix(node)
        assert weight is not None
        columns_first = node.op_type == "MatMul" or not node.attributes.get_int("transB", 0)
        if isinstance(fmt, FloatFormat):
            if fmt == FP16:
                node.replace_input_with(1, self._half(weight))
            return
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        self._replace(node, self._block_product(node, weight, columns_first, fmt, bias))

    def embedding(self, gather: ir.Node, head: ir.Node | None, fmt: OnnxFormat) -> None:
        """The token embedding, and the head where it holds the same numbers."""
        table = _value(gather, 0)
        ids = _value(gather, 1)
        columns = _array(table).shape[1]
        if isinstance(fmt, FloatFormat):
            stored = self._half(table) if fmt == FP16 else table
            gather.replace_input_with(0, stored)
            if head is not None:
                product = self._node(
                    head, fmt.operator, [_value(head, 0), stored], CONTRIB, transB=1
                )
                self._replace(head, product)
            return
        if columns % fmt.block == 0 and fmt.bits == 8:
            stored_codes, scales, *zeros = self._matrix(table, False, fmt)
            codes = stored_codes.const_value
            assert isinstance(codes, ir.ExternalTensor)
            name = f"{table.name}.rows"
            view = self._data.view(name, codes, ir.DataType.UINT8, _array(table).shape)
            self._replace(
                gather,
                self._node(
                    gather,
                    "GatherBlockQuantized",
                    [self._initializer(view), ids, scales, *zeros],
                    CONTRIB,
                    bits=fmt.bits,
                    block_size=fmt.block,
                    gather_axis=0,
                    quantize_axis=1,
                ),
            )
        if head is not None:
            self._replace(head, self._block_product(head, table, False, fmt, None))

    def rest(self) -> None:
        """Move the remaining floats to the data file, and remove what is not used any more."""
        for name in list(self._graph.initializers):
            value = self._graph.initializers[name]
            tensor = value.const_value
            assert tensor is not None
            if not value.uses():
                del self._graph.initializers[name]
            elif name in self._stored:
                continue
            elif tensor.nbytes >= _INLINE_BYTES:
                value.const_value = self._add(name, tensor.dtype, [tensor.numpy()])
            else:
                value.const_value = ir.tensor(np.array(tensor.numpy()), name=name)

    def _block_product(
        self,
        node: ir.Node,
        weight: ir.Value,
        columns_first: bool,
        fmt: BlockFormat,
        bias: ir.Value | None,
    ) -> ir.Node:
        shape = _array(weight).shape
        rows, columns = (shape[1], shape[0]) if columns_first else shape
        codes, scales, *zeros = self._matrix(weight, columns_first, fmt)
        inputs: list[ir.Value | None] = [_value(node, 0), codes, scales]
        inputs += [zeros[0] if zeros else None, None, bias]
        return self._node(
            node,
            fmt.operator,
            inputs,
            CONTRIB,
            K=columns,
            N=rows,
            bits=fmt.bits,
            block_size=fmt.block,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def _matrix(self, weight: ir.Value, columns_first: bool, fmt: BlockFormat) -> list[ir.Value]:
        """Codes, scales and zero-points (if any) of a matrix; stored once however often used."""
        assert weight.name is not None
        key = (weight.name, columns_first, fmt.name)
        if key not in self._matrices:
            self._matrices[key] = self._quantize(weight, columns_first, fmt)
        return self._matrices[key]

    def _quantize(self, weight: ir.Value, columns_first: bool, fmt: BlockFormat) -> list[ir.Value]:
        array = _array(weight)
        matrix = array.T if columns_first else array
        rows, columns = matrix.shape
        blocks = -(-columns // fmt.block)
        scales: list[npt.NDArray[np.generic]] = []
        zeros: list[npt.NDArray[np.generic]] = []

        def codes() -> Iterator[npt.NDArray[np.uint8]]:
            for start in range(0, rows, _ROWS):
                part = np.ascontiguousarray(matrix[start : start + _ROWS], np.float32)
                try:
                    packed = fmt.quantize(part)
                except ValueError as error:
                    raise ExportError(
                        f"Weight {weight.name}, rows from {start}: {error}.",
                        hint="The checkpoint is broken; get it again.",
                    ) from None
                scales.append(packed.scales)
                if packed.zero_points is not None:
                    zeros.append(packed.zero_points)
                yield packed.data

        name, blob = weight.name, fmt.block * fmt.bits // 8
        parts = [self._data.add(f"{name}.codes", ir.DataType.UINT8, (rows, blocks, blob), codes())]
        parts.append(self._data.add(f"{name}.scales", ir.DataType.FLOAT, (rows, blocks), scales))
        if zeros:
            shape = (rows, -(-blocks * fmt.bits // 8))
            parts.append(self._data.add(f"{name}.zero_points", ir.DataType.UINT8, shape, zeros))
        self.weight_bytes += sum(part.nbytes for part in parts)
        return [self._initializer(part) for part in parts]

    def _half(self, weight: ir.Value) -> ir.Value:
        """A float16 copy of a weight, cast back to float32 in the graph."""
        name = f"{weight.name}.half"
        existing = self._graph.initializers.get(name)
        if existing is not None:
            return next(node.outputs[0] for node, _ in existing.uses())
        try:
            array = FP16.quantize(_array(weight))
        except ValueError as error:
            raise ExportError(
                f"Weight {weight.name} {error}.", hint="Choose fp32 or int8 weights."
            ) from None
        half = self._initializer(self._add(name, ir.DataType.FLOAT16, [array]))
        user = next(node for node, _ in weight.uses())
        cast = self._node(user, "Cast", [half], "", to=ir.DataType.FLOAT.value)
        cast.name = f"{name}/cast"
        return cast.outputs[0]

    def _add(
        self, name: str, dtype: ir.DataType, arrays: list[npt.NDArray[np.generic]]
    ) -> ir.ExternalTensor:
        tensor = self._data.add(name, dtype, arrays[0].shape, arrays)
        if dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            self.weight_bytes += tensor.nbytes
        return tensor

    def _initializer(self, tensor: ir.ExternalTensor) -> ir.Value:
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        self._stored.add(tensor.name)
        return value

    def _node(
        self,
        before: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        domain: str,
        **attributes: int,
    ) -> ir.Node:
        while inputs[-1] is None:
            inputs.pop()
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=1)
        node.name = f"{before.name}/{op_type}"
        node.outputs[0].name = f"{before.name}/{op_type}_output"
        self._graph.insert_before(before, node)
        return node

    def _replace(self, old: ir.Node, new: ir.Node) -> None:
        name = old.outputs[0].name
        new.outputs[0].type, new.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
        old.outputs[0].replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
        self._graph.remove(old, safe=True)
        new.outputs[0].name = name


def _constant_matrix(node: ir.Node) -> ir.Value | None:
    """The float32 [*, *] weight of a matrix product, if it has one."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Gemm" and (
        node.attributes.get_int("transA", 0) == 1
        or node.attributes.get_float("alpha", 1.0) != 1.0
        or node.attributes.get_float("beta", 1.0) != 1.0
    ):
        return None
    weight = _value(node, 1)
    constant = weight.const_value
    if constant is None or constant.dtype != ir.DataType.FLOAT or len(constant.shape) != 2:
        return None
    return weight


def _embedding(graph: ir.Graph) -> ir.Node | None:
    """The Gather that turns token ids into hidden states."""
    ids = next(value for value in graph.inputs if value.name == INPUT_IDS)
    pending, seen = [ids], {ids}
    for value in pending:
        for node, index in value.uses():
            if node.op_type == "Gather" and index == 1 and _value(node, 0).const_value is not None:
                return node
            if node.op_type in ("Reshape", "Cast", "Identity") and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return None


def _head(graph: ir.Graph) -> ir.Node | None:
    """The product with a constant that the logits come from most directly."""
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    node = logits.producer()
    while node is not None and _constant_matrix(node) is None:
        sources = [source for source in node.inputs if source is not None]
        node = next((s.producer() for s in sources if s.const_value is None), None)
    return node


def _same_numbers(gather: ir.Node, head: ir.Node) -> bool:
    if head.op_type != "MatMul":
        return False
    table, matrix = _array(_value(gather, 0)), _array(_value(head, 1)).T
    return table.shape == matrix.shape and all(
        np.array_equal(table[start : start + _ROWS], matrix[start : start + _ROWS])
        for start in range(0, len(table), _ROWS)
    )


def _array(value: ir.Value) -> Float32:
    assert value.const_value is not None
    array: Float32 = value.const_value.numpy()
    return array


def _value(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value
