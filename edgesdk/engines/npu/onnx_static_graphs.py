"""Runs graphs of fixed shapes with onnxruntime, on the provider of a device's record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from edgesdk.engines.npu.static_graphs import Array, BoundGraph, GraphName

# onnxruntime's CPU provider would round the inputs of dequantized matrices to 8 bits (level 4),
# which no NPU does: logits of tiny models move by 0.4.
SESSION_CONFIG = {"session.qdq_matmulnbits_accuracy_level": "1"}


class OnnxStaticGraphs:
    """Implements `edgesdk.engines.npu.static_graphs.StaticGraphs`.

    Args:
        sessions: one for each graph.
    """

    def __init__(self, sessions: Mapping[GraphName, ort.InferenceSession]) -> None:
        self._sessions = dict(sessions)

    def bind(
        self, graph: GraphName, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> BoundGraph:
        session = self._sessions[graph]
        binding: Any = ort.IOBinding(session)
        # The values lie in the caller's own memory, which the binding does not keep.
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in {**inputs, **outputs}.items()
        }
        for name in inputs:
            binding.bind_ortvalue_input(name, values[name])
        for name in outputs:
            binding.bind_ortvalue_output(name, values[name])

        def run(_alive: object = (values, inputs, outputs)) -> None:
            session.run_with_iobinding(binding)

        return run

    def close(self) -> None:
        self._sessions.clear()
