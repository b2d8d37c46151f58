"""Sets what the quantized matrices of a graph may round their inputs to, in memory.

Bundles ask for 8-bit activations, which is what processors are fast at. A GPU is not, and rounds
them in its own way, so that its answers would differ for nothing.
"""

from __future__ import annotations

from pathlib import Path

from edgesdk.errors import requires_extra

_OPERATOR, _LEVEL = "MatMulNBits", "accuracy_level"


def with_accuracy_level(path: Path, level: int, *, extra: str) -> bytes | None:
    """The graph in `path` with that `accuracy_level` in each quantized matrix; None where each has
    it already.

    Its weights stay in their files beside `path`, which the bytes refer to.

    Args:
        extra: of edgesdk, which has the package that reads graphs.

    Raises:
        MissingExtra: that package is not installed.
    """
    with requires_extra(extra, needed_for="Running a quantized model on this device"):
        import onnx_ir
    model = onnx_ir.load(path)
    changed = False
    for node in model.graph.all_nodes():
        if node.op_type != _OPERATOR:
            continue
        found = node.attributes.get(_LEVEL)
        if found is None or found.as_int() != level:
            node.attributes[_LEVEL] = onnx_ir.AttrInt64(_LEVEL, level)
            changed = True
    if not changed:
        return None
    return bytes(onnx_ir.to_proto(model).SerializeToString())
