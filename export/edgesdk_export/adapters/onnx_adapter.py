"""Write an adapter for an ONNX bundle: the bundle's graph with low-rank inputs, and their values.

onnxruntime's own adapters are graph inputs as well, but `RunOptions.add_active_adapter` has no
effect on runs with bound inputs and outputs, which is how decoders run here. So the runtime reads
the file by `AdapterFormat` and binds what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgesdk.bundle import graph_io
from edgesdk.bundle.opening import Bundle
from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk.errors import ExportError
from edgesdk_export.adapters.low_rank import LowRankChange, LowRankWeights
from edgesdk_export.onnx.stored_weights import matrix_parts
from edgesdk_export.weights import Float32

GRAPH_FILE, WEIGHTS_FILE = "decoder.onnx", "adapter.onnx_adapter"
# The last node of a linear layer; see `edgesdk_export.onnx.operators.linear`.
_LAST_NODES = ("with_offsets", "add", "matmul")


def write_onnx_adapter(
    weights: LowRankWeights, spec: DecoderSpec, bundle: Bundle, folder: Path, dtype: str
) -> None:
    """Write the graph and the weights into `folder`.

    Args:
        dtype: "float16" or "float32", of the weights in the file.

    Raises:
        ExportError: the bundle's graph is not one of this exporter's.
    """
    stacked = {
        matrix: _stacked(parts, weights.changes, spec)
        for matrix, parts in matrix_parts(spec).items()
        if any(part in weights.changes for part in parts)
    }
    model = ir.load(bundle.role_file("decoder"))
    for matrix, (a, b) in stacked.items():
        _add_low_rank(model.graph, matrix, columns=a.shape[0], rows=b.shape[1])
    ir.save(model, folder / GRAPH_FILE)
    values = {
        name: ort.OrtValue.ortvalue_from_numpy(array.astype(dtype))
        for matrix, pair in stacked.items()
        for name, array in zip(graph_io.lora_names(matrix), pair, strict=True)
    }
    adapter = ort.AdapterFormat()
    adapter.set_parameters(values)
    adapter.export_adapter(str(folder / WEIGHTS_FILE))


def _stacked(
    parts: tuple[str, ...], changes: Mapping[str, LowRankChange], spec: DecoderSpec
) -> tuple[Float32, Float32]:
    """The changes of the layers of one stored matrix as one: [columns, ranks] and [ranks, rows].

    Each part's own ranks reach its own rows only.
    """
    shapes = canonical_shapes(spec)
    present = [(part, changes[part]) for part in parts if part in changes]
    rows = [shapes[f"{part}.weight"][0] for part in parts]
    a = np.concatenate([change.down for _, change in present]).T
    b = np.zeros((a.shape[1], sum(rows)), np.float32)
    first = 0
    for part, change in present:
        start = sum(rows[: parts.index(part)])
        b[first : first + change.rank, start : start + len(change.up)] = change.up.T
        first += change.rank
    return np.ascontiguousarray(a), b


def _add_low_rank(graph: ir.Graph, matrix: str, *, columns: int, rows: int) -> None:
    """Add x lora_a lora_b to what `matrix` makes of x."""
    nodes = {node.name: node for node in graph}
    product = nodes.get(f"{matrix}/matmul")
    last = next((nodes[f"{matrix}/{n}"] for n in _LAST_NODES if f"{matrix}/{n}" in nodes), None)
    if product is None or last is None:
        raise ExportError(
            f"The bundle's graph has no matrix {matrix} that an adapter could change.",
            hint="Export the bundle again, without --via optimum.",
        )
    a_name, b_name = graph_io.lora_names(matrix)
    a = _input(graph, a_name, (columns, f"{matrix}.rank"))
    b = _input(graph, b_name, (f"{matrix}.rank", rows))
    x, output = product.inputs[0], last.outputs[0]
    down = ir.Node("", "MatMul", [x, a], name=f"{matrix}/lora_a")
    up = ir.Node("", "MatMul", [down.outputs[0], b], name=f"{matrix}/lora_b")
    total = ir.Node("", "Add", [output, up.outputs[0]], name=f"{matrix}/with_lora")
    down.outputs[0].name, up.outputs[0].name = f"{matrix}/lora_a", f"{matrix}/lora_b"
    total.outputs[0].name = f"{matrix}/with_lora"
    # The head's output is one of the graph's, whose name, type and shape are promised.
    if output.is_graph_output():
        total.outputs[0].name, output.name = output.name, f"{matrix}/without_lora"
        total.outputs[0].type, total.outputs[0].shape = output.type, output.shape
    ir.convenience.replace_all_uses_with(output, total.outputs[0], replace_graph_outputs=True)
    total.replace_input_with(0, output)
    graph.insert_after(last, [down, up, total])


def _input(graph: ir.Graph, name: str, shape: tuple[int | str, ...]) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    graph.inputs.append(value)
    return value
