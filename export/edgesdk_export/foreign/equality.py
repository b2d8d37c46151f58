"""Does the rewritten graph say what torch says, and what did quantizing it cost?

The rewrite follows a pattern, and a pattern can fit what it was not made for. So every export is
checked on real numbers before anything is quantized: prefill, a second chunk, and single tokens,
with a KV buffer that is larger than needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from edgesdk_quantize.divergence import Divergence, DivergenceMeter, join

from edgesdk.bundle.graph_io import (
    INPUT_IDS,
    LOGITS,
    LOGITS_FROM,
    SEQLENS_K,
    TOTAL_SEQUENCE_LENGTH,
)
from edgesdk.errors import ExportError
from edgesdk_export.quality.text import Windows

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_SPARE = 9
# Of the largest logit: float32 sums in another order differ by about 1e-6 of it.
_TOLERANCE = 1e-4


def check_equality(model_path: Path, ids: Ids, expected: Float32) -> float:
    """Largest absolute difference between the graph's logits and `expected` [n, vocab].

    Args:
        ids: int64 [n], n >= 8; half of them go in at once, then all but four, then one by one.

    Raises:
        ExportError: the graph does not run, or differs.
    """
    borders = [0, len(ids) // 2, *range(len(ids) - 4, len(ids) + 1)]
    try:
        run = _Decoding(model_path, len(ids) + _SPARE)
        got = np.concatenate([run(ids[a:b], a) for a, b in itertools.pairwise(borders)])
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


def measure_divergence(
    reference: Path, candidate: Path, windows: Windows, steps: Callable[[int, int], None]
) -> Divergence:
    """Two decoders over the same windows; `steps` is told (windows done, windows)."""
    count, length = windows.ids.shape
    models = [_Decoding(path, length) for path in (reference, candidate)]
    found = []
    for index, ids in enumerate(windows.ids):
        meter = DivergenceMeter(ids[1:])
        meter.add(*(run(ids, 0)[:-1] for run in models))
        found.append(meter.result())
        steps(index + 1, count)
    return join(found)


class _Decoding:
    """A decoder over shared KV buffers; called with ids [n] and the position of the first."""

    def __init__(self, model_path: Path, capacity: int) -> None:
        options = onnxruntime.SessionOptions()
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
