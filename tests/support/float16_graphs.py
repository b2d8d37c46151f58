"""Runs graphs of fixed shapes in numpy, and rounds what every operator gives to float16.

That is what an NPU of float16 cannot do better than. onnxruntime's CPU provider computes the same
graphs in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from edgesdk_export.npu.build import GRAPH_FILES
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edgesdk.engines.npu.static_graphs import Array, BoundGraph, GraphName


class SimplifiedLayerNormalization(OpRun):
    """The RMS norm, which onnxruntime has in the standard domain."""

    op_domain = ""

    def _run(self, x: Array, gain: Array, **attributes: Any) -> tuple[Array]:
        exact = x.astype(np.float32)
        size = np.square(exact).mean(axis=-1, keepdims=True) + attributes["epsilon"]
        return ((exact / np.sqrt(size) * gain.astype(np.float32)).astype(x.dtype),)


class MatMulNBits(OpRun):
    """x [..., K] times codes of 4 bits [N, K / block, block / 2], around a zero-point of 8."""

    op_domain = "com.microsoft"

    def _run(self, x: Array, codes: Array, scales: Array, **attributes: Any) -> tuple[Array]:
        rows, columns, block = (attributes[name] for name in ("N", "K", "block_size"))
        both = np.stack([codes & 15, codes >> 4], axis=-1).reshape(rows, -1, block)
        steps = scales.reshape(rows, -1, 1).astype(np.float32)
        matrix = ((both.astype(np.float32) - 8) * steps).reshape(rows, -1)[:, :columns]
        return ((x.astype(np.float32) @ matrix.T).astype(x.dtype),)


class Float16Graphs:
    """Implements `edgesdk.engines.npu.static_graphs.StaticGraphs`.

    Args:
        folder: where the graphs of a bundle lie.
    """

    def __init__(self, folder: Path) -> None:
        operators: list[Any] = [SimplifiedLayerNormalization, MatMulNBits]
        self._graphs: dict[GraphName, ReferenceEvaluator] = {
            name: ReferenceEvaluator(onnx.load(folder / GRAPH_FILES[name]), new_ops=operators)
            for name in get_args(GraphName)
        }

    def bind(
        self, graph: GraphName, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> BoundGraph:
        evaluator = self._graphs[graph]

        def run() -> None:
            found = evaluator.run(None, dict(inputs))
            for name, value in zip(evaluator.output_names, found, strict=True):
                outputs[name][...] = value

        return run

    def close(self) -> None:
        self._graphs.clear()
