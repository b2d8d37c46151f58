"""Draw linear layers and norms, the operators that every part of a decoder is made of.

Hidden states travel as a `ResidualStream`: the residual, and the newest branch that is yet to be
added to it. The next norm adds and normalises in one operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from edgesdk_quantize.formats.blocks import BLOCK_OPERATOR
from edgesdk_quantize.formats.floats import FLOAT_OPERATOR

from edgesdk_export.onnx.graph_builder import CONTRIB, GraphBuilder, sizes

# MatMulNBits rounds activations to 8 bits a block. On SmolLM2-135M that costs .003 of KL
# divergence; without it onnxruntime 1.31 decodes at a tenth of the speed.
INT8_ACTIVATIONS = 4


@dataclass(frozen=True)
class ResidualStream:
    """Hidden states float32 [batch, sequence, hidden]: residual + branch."""

    residual: ir.Value
    branch: ir.Value | None = None


def linear(graph: GraphBuilder, at: str, x: ir.Value, columns: int) -> ir.Value:
    """x [..., columns] times the stored matrix `at` [rows, columns], plus its bias if it has one.

    The format is read off the stored tensors: `.codes` means blocks, `.weight` means floats.
    """
    bias = graph.weight(at + ".bias") if graph.has(at + ".bias") else None
    if graph.has(at + ".offsets.codes"):
        return _offset_linear(graph, at, x, columns, bias)
    if graph.has(at + ".codes"):
        return _block_linear(graph, at, x, columns, bias)
    weight = float_weight(graph, at)
    product = graph.op(FLOAT_OPERATOR, f"{at}/matmul", [x, weight], domain=CONTRIB, transB=1)
    return product if bias is None else graph.op("Add", f"{at}/add", [product, bias])


def float_weight(graph: GraphBuilder, at: str) -> ir.Value:
    """A float matrix as float32; onnxruntime folds the cast when it loads the model."""
    weight = graph.weight(at + ".weight")
    if weight.dtype == ir.DataType.FLOAT:
        return weight
    return graph.op("Cast", f"{at}/float32", [weight], to=ir.DataType.FLOAT.value)


def _block_linear(
    graph: GraphBuilder, at: str, x: ir.Value, columns: int, bias: ir.Value | None
) -> ir.Value:
    codes = graph.weight(at + ".codes")
    rows, blocks, blob = sizes(codes)
    block = block_size(columns, blocks)
    zeros = at + ".zero_points"
    return graph.op(
        BLOCK_OPERATOR,
        f"{at}/matmul",
        [
            x,
            codes,
            block_scales(graph, at),
            graph.weight(zeros) if graph.has(zeros) else None,
            None,
            bias,
        ],
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=blob * 8 // block,
        block_size=block,
        accuracy_level=INT8_ACTIVATIONS,
    )


def _offset_linear(
    graph: GraphBuilder, at: str, x: ir.Value, columns: int, bias: ir.Value | None
) -> ir.Value:
    """Blocks with offsets: these are multiplied with the sums of x over each block."""
    _, blocks, _ = sizes(graph.weight(at + ".codes"))
    name = f"{x.name}/sums_{blocks}"
    sums = graph.output_of(name)
    if sums is None:  # several matrices read the same x
        shape = graph.constant(
            f"blocks_of_{columns // blocks}", [0, 0, -1, columns // blocks], np.int64
        )
        last = graph.constant("last_axis", [-1], np.int64)
        cut = graph.op("Reshape", f"{x.name}/blocks_{blocks}", [x, shape])
        sums = graph.op("ReduceSum", name, [cut, last], keepdims=0)
    offsets = _block_linear(graph, at + ".offsets", sums, blocks, None)
    return graph.op(
        "Add", f"{at}/with_offsets", [_block_linear(graph, at, x, columns, bias), offsets]
    )


def block_scales(graph: GraphBuilder, at: str) -> ir.Value:
    """The scales of a stored matrix as float32; onnxruntime folds the product when it loads the
    model."""
    if not graph.has(at + ".scale_codes"):
        return graph.weight(at + ".scales")
    known = graph.output_of(f"{at}/scales")
    if known is not None:
        return known  # a tied embedding is gathered from and multiplied with
    codes = graph.weight(at + ".scale_codes")
    whole = graph.op("Cast", f"{at}/scale_codes", [codes], to=ir.DataType.FLOAT.value)
    return graph.op("Mul", f"{at}/scales", [whole, graph.weight(at + ".scale_units")])


def block_size(columns: int, blocks: int) -> int:
    """The power of two that cuts `columns` into `blocks`; the kernels know none below 16."""
    return max(16, 1 << (math.ceil(columns / blocks) - 1).bit_length())


def lookup(graph: GraphBuilder, at: str, ids: ir.Value, columns: int) -> ir.Value:
    """Rows `ids` int64 [batch, sequence] of the stored matrix `at`, as float32 [..., columns]."""
    if graph.has(at + ".rows"):
        coded = graph.has(at + ".scale_codes")
        blocks = sizes(graph.weight(at + (".scale_codes" if coded else ".scales")))[1]
        rows, zeros = graph.weight(at + ".rows"), at + ".zero_points"
        return graph.op(
            "GatherBlockQuantized",
            f"{at}/gather",
            [
                rows,
                ids,
                block_scales(graph, at),
                graph.weight(zeros) if graph.has(zeros) else None,
            ],
            domain=CONTRIB,
            bits=8 * sizes(rows)[1] // columns,
            block_size=block_size(columns, blocks),
            gather_axis=0,
            quantize_axis=1,
        )
    table = graph.weight(at + ".weight")
    found = graph.op("Gather", f"{at}/gather", [table, ids])
    if table.dtype == ir.DataType.FLOAT:
        return found
    return graph.op("Cast", f"{at}/cast", [found], to=ir.DataType.FLOAT.value)


def norm(
    graph: GraphBuilder, at: str, stream: ResidualStream, epsilon: float
) -> tuple[ir.Value, ir.Value]:
    """The stream's sum, RMS-normalised with gain `at`; and the sum itself.

    Zhang and Sennrich, 2019, arXiv:1910.07467.
    """
    gain = graph.weight(at + ".weight")
    if stream.branch is None:
        return rms_norm(graph, at, stream.residual, epsilon), stream.residual
    normed, _, _, total = graph.ops(
        "SkipSimplifiedLayerNormalization",
        f"{at}/norm",
        [stream.residual, stream.branch, gain],
        (f"{at}/norm", "", "", f"{at}/sum"),
        domain=CONTRIB,
        epsilon=epsilon,
    )
    return normed, total


def rms_norm(graph: GraphBuilder, at: str, x: ir.Value, epsilon: float) -> ir.Value:
    """x, RMS-normalised along its last axis with gain `at`."""
    return graph.op(
        "SimplifiedLayerNormalization",
        f"{at}/norm",
        [x, graph.weight(at + ".weight")],
        axis=-1,
        epsilon=epsilon,
        stash_type=1,
    )
