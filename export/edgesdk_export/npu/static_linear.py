"""Draw products with stored matrices, in the operators that NPUs keep compressed."""

from __future__ import annotations

import onnx_ir as ir
from edgesdk_quantize.formats.blocks import BLOCK_OPERATOR

from edgesdk_export.onnx.graph_builder import CONTRIB, GraphBuilder, sizes
from edgesdk_export.onnx.operators import block_size


def has_matrix(graph: GraphBuilder, at: str) -> bool:
    """Whether a matrix `at` is stored, in any format."""
    return any(graph.has(f"{at}.{kind}") for kind in ("weight", "codes", "channels"))


def linear(graph: GraphBuilder, at: str, x: ir.Value, columns: int) -> ir.Value:
    """x [..., columns] times the stored matrix `at` [rows, columns], plus its bias if it has one.

    The format is read off the stored tensors: `.codes` means blocks, `.channels` a scale for each
    row, `.weight` floats.
    """
    if graph.has(at + ".codes"):
        product = _blocks(graph, at, x, columns)
    elif graph.has(at + ".channels"):
        product = _channels(graph, at, x)
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


def _channels(graph: GraphBuilder, at: str, x: ir.Value) -> ir.Value:
    """A scale for each column; input and product are rounded to 16 bits where there are grids."""
    weight = graph.op(
        "DequantizeLinear",
        f"{at}/floats",
        [graph.weight(at + ".channels"), graph.weight(at + ".channel_scales")],
        axis=1,
    )
    x = _rounded(graph, f"{at}.input", x)
    return _rounded(graph, f"{at}.product", graph.op("MatMul", f"{at}/matmul", [x, weight]))


def _rounded(graph: GraphBuilder, at: str, x: ir.Value) -> ir.Value:
    if not graph.has(f"{at}_scale"):
        return x
    grid = [graph.weight(f"{at}_scale"), graph.weight(f"{at}_zero_point")]
    codes = graph.op("QuantizeLinear", f"{at}/codes", [x, *grid])
    return graph.op("DequantizeLinear", f"{at}/rounded", [codes, *grid])
