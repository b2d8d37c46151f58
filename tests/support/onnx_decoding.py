"""Run a written decoder as an engine does: shared KV buffers, IO binding, growing lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from edgesdk.bundle import graph_io
from edgesdk.bundle.spec import DecoderSpec


def cpu_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


class OnnxDecoding:
    """One sequence over a model file; `extend` returns float32 [positions, vocab]."""

    def __init__(self, model: Path, spec: DecoderSpec, *, capacity: int, threads: int = 1) -> None:
        options = cpu_options()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )
        self._binding = self.session.io_binding()
        shape = (1, spec.kv_heads, capacity, spec.head_size)
        # Garbage beyond the tokens must not matter, as it would not after a rewind.
        self.buffers = [
            onnxruntime.OrtValue.ortvalue_from_numpy(np.full(shape, 1e3, np.float32))
            for _ in range(2 * spec.layers)
        ]
        for layer in range(spec.layers):
            names = (*graph_io.past_names(layer), *graph_io.present_names(layer))
            for index, name in enumerate(names):
                buffer = self.buffers[2 * layer + index % 2]
                if index < 2:
                    self._binding.bind_ortvalue_input(name, buffer)
                else:
                    self._binding.bind_ortvalue_output(name, buffer)
        self.length = 0

    def extend(self, tokens: list[int], *, logits_from: int = 0) -> np.ndarray:
        total = self.length + len(tokens)
        feeds = {
            graph_io.INPUT_IDS: np.asarray([tokens], np.int64),
            graph_io.LOGITS_FROM: np.asarray([logits_from], np.int64),
            graph_io.SEQLENS_K: np.asarray([total - 1], np.int32),
            graph_io.TOTAL_SEQUENCE_LENGTH: np.asarray(total, np.int32),
        }
        for name, value in feeds.items():
            self._binding.bind_cpu_input(name, value)
        self._binding.bind_output(graph_io.LOGITS)
        self.session.run_with_iobinding(self._binding)
        self.length = total
        for output in self._binding.get_outputs():
            if len(output.shape()) == 3:
                return output.numpy()[0]
        raise AssertionError("no logits came back")

    def hidden_states(self, tokens: list[int], *, logits_from: int = 0) -> np.ndarray:
        """Of a text of its own, float32 [positions, hidden]."""
        feeds = {
            graph_io.INPUT_IDS: np.asarray([tokens], np.int64),
            graph_io.LOGITS_FROM: np.asarray([logits_from], np.int64),
            graph_io.SEQLENS_K: np.asarray([len(tokens) - 1], np.int32),
            graph_io.TOTAL_SEQUENCE_LENGTH: np.asarray(len(tokens), np.int32),
        }
        for layer in range(len(self.buffers) // 2):
            for name, buffer in zip(
                graph_io.past_names(layer), self.buffers[2 * layer :], strict=False
            ):
                feeds[name] = np.zeros(buffer.shape(), np.float32)
        return self.session.run([graph_io.HIDDEN_STATES], feeds)[0][0]

    def rewind(self, length: int) -> None:
        self.length = length
