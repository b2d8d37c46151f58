"""Does the rewritten graph say what torch says?

The rewrite follows a pattern, and a pattern can fit what it was not made for. So every export is
checked on real numbers before anything is quantized: prefill, a second chunk, and single tokens,
with a KV buffer that is larger than needed.
"""

from __future__ import annotations

import itertools
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
from edgesdk.errors import ExportError

Float32 = npt.NDArray[np.float32]

_SPARE = 9
# Of the largest logit: float32 sums in another order differ by about 1e-6 of it.
_TOLERANCE = 1e-4


def check_equality(model_path: Path, ids: npt.NDArray[np.int64], expected: Float32) -> float:
    """Largest absolute difference between the graph's logits and `expected` [n, vocab].

    Raises:
        ExportError: the graph does not run, or differs.
    """
    try:
        got = run_in_pieces(model_path, ids)
    except Exception as error:
        raise ExportError(
            f"The rewritten graph does not run: {error}.",
            hint="This architecture cannot be exported for the shared KV cache.",
        ) from error
    difference = float(np.abs(got - expected).max()) if got.shape == expected.shape else np.inf
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ExportError(
            f"The rewritten graph differs from the checkpoint by up to {difference:.3g} in its"
            " logits.",
            hint="This architecture does something that the attention rewrite does not know.",
        )
    return difference


def run_in_pieces(model_path: Path, ids: npt.NDArray[np.int64]) -> Float32:
    """Logits [n, vocab] of `ids` [n], n >= 8: half at once, then all but four, then one by one."""
    total = len(ids)
    session = open_graph(model_path)
    buffers = _buffers(session, total + _SPARE)
    borders = [0, total // 2, *range(total - 4, total + 1)]
    return np.concatenate(
        [_step(session, buffers, ids, start, stop) for start, stop in itertools.pairwise(borders)]
    )


def run_from_empty(session: onnxruntime.InferenceSession, ids: npt.NDArray[np.int64]) -> Float32:
    """Logits [n, vocab] of `ids` [n] at once."""
    return _step(session, _buffers(session, len(ids)), ids, 0, len(ids))


def open_graph(model_path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(model_path), options, providers=["CPUExecutionProvider"]
    )


def _buffers(
    session: onnxruntime.InferenceSession, capacity: int
) -> dict[str, onnxruntime.OrtValue]:
    return {
        node.name: onnxruntime.OrtValue.ortvalue_from_numpy(
            np.zeros((1, node.shape[1], capacity, node.shape[3]), np.float32)
        )
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }


def _step(
    session: onnxruntime.InferenceSession,
    buffers: dict[str, onnxruntime.OrtValue],
    ids: npt.NDArray[np.int64],
    start: int,
    stop: int,
) -> Float32:
    binding = session.io_binding()
    binding.bind_cpu_input(INPUT_IDS, ids[None, start:stop])
    binding.bind_cpu_input(LOGITS_FROM, np.array([0], np.int64))
    binding.bind_cpu_input(SEQLENS_K, np.array([stop - 1], np.int32))
    binding.bind_cpu_input(TOTAL_SEQUENCE_LENGTH, np.array(stop, np.int32))
    for name, buffer in buffers.items():
        binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), buffer)
    binding.bind_output(LOGITS)
    session.run_with_iobinding(binding)
    logits: Float32 = binding.get_outputs()[-1].numpy()[0].astype(np.float32)
    return logits
