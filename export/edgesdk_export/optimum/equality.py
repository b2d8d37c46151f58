"""Check that the rewritten graph gives the logits of torch, and measure what quantizing cost.

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
import onnx_ir as ir
from edgesdk_quantize.divergence import Divergence, DivergenceMeter, join

from edgesdk.errors import ExportError
from edgesdk_export.optimum.quantize_graph import store_noisy
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.selftest.onnx_decoder import SharedCacheDecoder
from edgesdk_export.selftest.weight_noise import WeightErrors

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
        run = SharedCacheDecoder(model_path, len(ids) + _SPARE)
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


def float32_logits(model_path: Path, work: Path, ids: Ids, errors: WeightErrors | None) -> Float32:
    """Logits float32 [n, vocab] of the graph before it was quantized, for ids int64 [n]; with
    random errors in its weights where their sizes are given. Then a copy is written to `work`."""
    if errors is not None:
        model = ir.load(model_path)
        model_path = work / "noisy.onnx"
        store_noisy(model, errors, model_path)
    return SharedCacheDecoder(model_path, len(ids))(ids, 0)


def measure_divergence(
    reference: Path, candidate: Path, windows: Windows, steps: Callable[[int, int], None]
) -> Divergence:
    """Compare two decoders over the same windows; `steps` is called with (done, windows)."""
    count, length = windows.ids.shape
    models = [SharedCacheDecoder(path, length) for path in (reference, candidate)]
    found = []
    for index, ids in enumerate(windows.ids):
        meter = DivergenceMeter(ids[1:])
        meter.add(*(run(ids, 0)[:-1] for run in models))
        found.append(meter.result())
        steps(index + 1, count)
    return join(found)
