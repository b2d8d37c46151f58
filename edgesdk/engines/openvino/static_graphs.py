"""Runs graphs of fixed shapes with OpenVINO, over the arrays of the caller."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgesdk.bundle.static_io import Ports
from edgesdk.engines.npu.static_graphs import Array, BoundGraph, GraphName
from edgesdk.errors import EngineError


class OpenVinoStaticGraphs:
    """Implements `edgesdk.engines.npu.static_graphs.StaticGraphs`.

    Args:
        openvino: the package.
        compiled: an `openvino.CompiledModel` for each graph.
    """

    def __init__(self, openvino: Any, compiled: Mapping[GraphName, Any]) -> None:
        self._openvino = openvino
        self._compiled = dict(compiled)

    def bind(
        self, graph: GraphName, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> BoundGraph:
        compiled = self._compiled.get(graph)
        if compiled is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        request = compiled.create_infer_request()
        for ports, arrays in ((compiled.inputs, inputs), (compiled.outputs, outputs)):
            for name, array in arrays.items():
                request.set_tensor(
                    port_of(ports, name), self._openvino.Tensor(array, shared_memory=True)
                )
        # The outputs are read from the arrays; by default they would be copied for the result too.
        return partial(request.infer, share_outputs=True)

    def close(self) -> None:
        self._compiled.clear()


def port_of(ports: Any, name: str) -> Any:
    """The port of that name. A port has several, because OpenVINO gives an output the names of the
    nodes that it merged into it."""
    return next(port for port in ports if name in port.get_names())


def found_ports(ports: Any, wanted: Ports) -> Ports:
    """The types and shapes of a compiled model's inputs or outputs, by the names that are wanted;
    others by any of theirs."""
    found: Ports = {}
    for port in ports:
        names = port.get_names()
        name = next((name for name in wanted if name in names), min(names, default=""))
        found[name] = (str(port.get_element_type().to_dtype()), tuple(port.get_shape()))
    return found
