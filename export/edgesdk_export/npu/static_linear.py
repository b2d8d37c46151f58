"""Draw products with stored matrices, in the operators that NPUs keep compressed."""

from __future__ import annotations

import onnx_ir as ir
from edgesdk_quantize.formats.blocks import BLOCK_OPERATOR

from edgesdk_export.onnx.graph_builder import CONTRIB, GraphBuilder, sizes
from edgesdk_export.onnx.operators import block_size


def has_matrix(graph: GraphBuilder, at: str) -> bool:
    """Whether a matrix `at` is stored, in any format."""
    return graph.has(at + ".weight") or graph.has(at + ".codes")


def linear(graph: GraphBuilder, at: str, x: ir.Value, columns: int) -> ir.Value:
    """x [..., columns] times the stored matrix `at` [rows, columns], plus its bias if it has one.

    The format is read off the stored tensors: `.codes` means blocks, `.weight` means floats.
    """
    if graph.has(at + ".codes"):
        product = _blocks(graph, at, x, columns)
    else:
        turned = graph.op("Transpose", f"{at}/turned", [graph.weight(at + ".weight")], perm=[1, 0])
        product = graph.op("MatMul", f"{at}/matmul", [x, turned])
    if not graph.has(at + ".bias"):
        return product
    return graph.op("Add", f"{at}/add", [product, graph.weight(at + ".bias")])


def _blocks(graph: GraphBuilder, at: str, x: ir.Value, columns: int) -> ir.Value:
    """Symmetric blocks: Qualcomm's compiler silently computes others wrongly."""
    codes = graph.weight(at + ".codes")
    rows, blocks, blob = sizes(codes)
    block = block_size(columns, blocks)
    return graph.op(
        BLOCK_OPERATOR,
        f"{at}/matmul",
        [x, codes, graph.weight(at + ".scales")],
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=blob * 8 // block,
        block_size=block,
    )
