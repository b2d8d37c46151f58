"""A whole ONNX decoder over shared KV buffers, as engines run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from edgesdk.bundle.graph_io import (
    INPUT_IDS,
    LOGITS,
    LOGITS_FROM,
    SEQLENS_K,
    TOTAL_SEQUENCE_LENGTH,
)

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Decoding:
    """Called with ids int64 [n] and the position of the first; gives logits float32 [n, vocab].

    Args:
        capacity: how many positions the KV buffers have.
        options: of the session; None = onnxruntime's own.
    """

    def __init__(
        self,
        model_path: Path,
        capacity: int,
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        options = options or onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(model_path), options, providers=["CPUExecutionProvider"]
        )
        self._buffers = {
            node.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((1, node.shape[1], capacity, node.shape[3]), np.float32)
            )
            for node in self._session.get_inputs()
            if node.name.startswith("past_key_values.")
        }

    def __call__(self, ids: Ids, start: int) -> Float32:
        total = start + len(ids)
        binding = self._session.io_binding()
        binding.bind_cpu_input(INPUT_IDS, ids[None])
        binding.bind_cpu_input(LOGITS_FROM, np.array([0], np.int64))
        binding.bind_cpu_input(SEQLENS_K, np.array([total - 1], np.int32))
        binding.bind_cpu_input(TOTAL_SEQUENCE_LENGTH, np.array(total, np.int32))
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), buffer)
        binding.bind_output(LOGITS)
        self._session.run_with_iobinding(binding)
        logits: Float32 = binding.get_outputs()[-1].numpy()[0]
        return logits
