"""Build ONNX graphs of named nodes, with weights looked up by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

OPSET = 21
CONTRIB = "com.microsoft"
_IR_VERSION = 10


class Weights(Protocol):
    """Where a graph finds its weights, by their stored names."""

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> ir.TensorProtocol: ...


class GraphBuilder:
    """Collects the inputs, nodes, initializers and outputs of one graph, in order.

    Args:
        weights: what the graph may use; only those it asks for become initializers.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Declare a graph input; a string names a dimension of any size."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(
        self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[int | str]
    ) -> None:
        """Make `value` a graph output under `name`."""
        value.name = name
        value.type = ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        self._outputs.append(value)

    def has(self, name: str) -> bool:
        """Whether there is a weight of that name."""
        return name in self._weights

    def weight(self, name: str) -> ir.Value:
        """A weight as an initializer of this graph, with its type and shape."""
        if name not in self._initializers:
            self._initializers[name] = _initializer(name, self._weights[name])
        return self._initializers[name]

    def replaceable(self, name: str, rows: str) -> ir.Value:
        """A weight that a caller may give as an input, with `rows` (a dimension of any size) in
        place of its own."""
        value = self.weight(name)
        if value not in self._inputs:
            value.shape = ir.Shape([rows, *sizes(value)[1:]])
            self._inputs.append(value)
        return value

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike) -> ir.Value:
        """A small constant, kept inside the graph file."""
        if name not in self._initializers:
            tensor = ir.tensor(np.asarray(value, dtype), name=name)
            self._initializers[name] = _initializer(name, tensor)
        return self._initializers[name]

    def op(
        self,
        kind: str,
        name: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node of one output; `name` is the node's and the output's."""
        return self.ops(kind, name, inputs, (name,), domain=domain, **attributes)[0]

    def ops(
        self,
        kind: str,
        name: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Add a node of several outputs; an output named "" is left out, as is a None input."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.Node(
            domain,
            kind,
            given,
            ir.convenience.convert_attributes(attributes),
            outputs=[ir.Value(name=output) for output in outputs],
            name=name,
        )
        self._nodes.append(node)
        return node.outputs

    def output_of(self, name: str) -> ir.Value | None:
        """The output of a node that was added under that name; None where there is none."""
        for node in self._nodes:
            if node.name == name:
                return node.outputs[0]
        return None

    def input_of_matrix(self, matrix: str) -> ir.Value:
        """The first input of the node that multiplies with a stored matrix."""
        kinds = (f"{matrix}.weight", f"{matrix}.codes")
        for node in self._nodes:
            if any(value is not None and value.name in kinds for value in node.inputs[1:]):
                found = node.inputs[0]
                assert found is not None
                return found
        raise KeyError(matrix)

    def model(self, name: str) -> ir.Model:
        """The finished model."""
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=tuple(self._initializers.values()),
            opset_imports={"": OPSET, CONTRIB: 1},
            name=name,
        )
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="edgesdk")


def _initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)


def sizes(value: ir.Value) -> tuple[int, ...]:
    """The shape of a value that has a fixed one."""
    assert value.shape is not None
    return value.shape.numpy()
