"""Compute the logits of a `.tflite` with LiteRT's interpreter, by its three signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from edgesdk.bundle import litert_io
from edgesdk.errors import ExportError
from edgesdk_export.selftest.onnx_decoder import Float32, Ids


def litert_logits(path: Path, ids: Ids) -> Float32:
    """Logits float32 [n, vocab] of tokens int64 [n], n >= 2: as many as one call of "prefill"
    takes, but not all of them, by that, and the others one by one.

    Raises:
        ExportError: LiteRT cannot open or run the file.
    """
    try:
        interpreter = Interpreter(str(path), num_threads=1)
        runners = {
            name: interpreter.get_signature_runner(name)
            for name in (litert_io.PREFILL, litert_io.DECODE, litert_io.HEAD)
        }
        return _logits(runners, ids)
    # Its exceptions have no common base.
    except Exception as error:
        raise ExportError(
            f"LiteRT cannot run {path.name}, which was just written: {error}.",
            hint="This is a fault of the export; please report it with the checkpoint's name.",
        ) from error


def _logits(runners: dict[str, Any], ids: Ids) -> Float32:
    shapes = runners[litert_io.PREFILL].get_input_details()
    size = int(shapes[litert_io.TOKENS]["shape"][1])
    first = min(size, 2 * len(ids) // 3)
    caches = {
        name: np.zeros(entry["shape"], np.float32)
        for name, entry in shapes.items()
        if name not in (litert_io.TOKENS, litert_io.POSITIONS)
    }
    padded = np.zeros((1, size), np.int32)
    padded[0, :first] = ids[:first]
    found = _call(runners[litert_io.PREFILL], padded, 0, caches)
    states = {litert_io.HIDDEN_STATES: found[litert_io.HIDDEN_STATES]}
    rows = [runners[litert_io.HEAD](**states)[litert_io.LOGITS][0, :first]]
    for at in range(first, len(ids)):
        found = _call(runners[litert_io.DECODE], ids[None, at : at + 1], at, caches)
        rows.append(found[litert_io.LOGITS][0])
    return np.concatenate(rows)


def _call(
    runner: Any, tokens: npt.NDArray[np.integer], start: int, caches: dict[str, Any]
) -> dict[str, Any]:
    """Run a signature, and put the caches that it gives in the place of those it took."""
    positions = np.arange(start, start + tokens.shape[1], dtype=np.int32)
    inputs = {litert_io.TOKENS: tokens.astype(np.int32), litert_io.POSITIONS: positions}
    found: dict[str, Any] = runner(**inputs, **caches)
    caches.update((name, found[name]) for name in caches)
    return found
