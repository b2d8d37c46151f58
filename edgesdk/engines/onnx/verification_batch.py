"""Computes tokens that follow one another in one call, by the kernels of one token.

onnxruntime's attention takes other kernels for several rows than for one; their sums differ in
the last bits, which the 8-bit activations of quantized matrices blow up to other logits. But the
rows of a batch are each computed as one row alone. So a batch is made of the tokens: row i is a
sequence that ends at token i, and all rows see the same KV cache. Each row writes its own key and
value there, and the operator must do all the writing before it reads.

No document promises that order: onnxruntime's kernels differ in it, and so may its releases. So
it is measured on the model itself, and `VerificationVerdict` keeps what came out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edgesdk.bundle import graph_io
from edgesdk.engines.base import HiddenStates, Logits
from edgesdk.engines.onnx.kv_cache import KvCache
from edgesdk.system.atomic_files import write_atomically
from edgesdk.system.resources import cpu_info

# As many as a batch can have.
MAX_VERIFIED_TOKENS = 8

_LOG = logging.getLogger("edgesdk.onnx")


class VerificationBatch:
    """Buffers and bindings for batches of `rows` tokens on one state of a cache.

    Args:
        cache: aliased `MAX_VERIFIED_TOKENS` times.
        shared: rope tables of the cache's capacity and an adapter's weights, by graph input.
        hidden_size: None where the graph gives no hidden states.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: KvCache,
        shared: Mapping[str, ort.OrtValue],
        rows: int,
        vocab_size: int,
        hidden_size: int | None,
    ) -> None:
        self.binding = ort.IOBinding(session)
        self._views = cache.views
        self._shared = shared
        self._offsets = np.arange(rows, dtype=np.int32)
        self._ids = np.zeros((rows, 1), np.int64)
        self._last_positions = np.zeros(rows, np.int32)
        self._total = np.zeros((), np.int32)
        self._logits = np.empty((rows, 1, vocab_size), np.float32)
        self._hidden = None if hidden_size is None else np.empty((rows, 1, hidden_size), np.float32)
        self._from_first = np.zeros(1, np.int64)
        for name, array in (
            (graph_io.INPUT_IDS, self._ids),
            (graph_io.LOGITS_FROM, self._from_first),
            (graph_io.SEQLENS_K, self._last_positions),
            (graph_io.TOTAL_SEQUENCE_LENGTH, self._total),
        ):
            self.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, value in shared.items():
            self.binding.bind_ortvalue_input(name, value)
        for layer, pair in enumerate(self._views):
            names = zip(graph_io.past_names(layer), graph_io.present_names(layer), strict=True)
            for (past, present), view in zip(names, pair, strict=True):
                value = ort.OrtValue.ortvalue_from_numpy(view[:rows])
                self.binding.bind_ortvalue_input(past, value)
                self.binding.bind_ortvalue_output(present, value)
        for name, room in ((graph_io.LOGITS, self._logits), (graph_io.HIDDEN_STATES, self._hidden)):
            if room is not None:
                out = ort.OrtValue.ortvalue_from_numpy(room)
                self.binding.bind_ortvalue_output(name, out)

    def fits(self, cache: KvCache) -> bool:
        """Whether the cache is still the one that is bound here."""
        return self._views is cache.views

    @property
    def logits(self) -> Logits:
        """The logits of each row of the last run, float32 [rows, vocab]."""
        return self._logits[:, 0]

    @property
    def hidden_states(self) -> HiddenStates | None:
        """The hidden states that these logits are made of, float32 [rows, hidden]."""
        return None if self._hidden is None else self._hidden[:, 0]

    def set(self, ids: list[int], held: int, *, backwards: bool = False) -> None:
        """Set what the next run computes.

        Args:
            ids: tokens that stand behind `held` others.
            backwards: put the last of them into the first row.
        """
        step = -1 if backwards else 1
        self._ids[:, 0] = ids[::step]
        np.add(self._offsets[::step], held, out=self._last_positions)
        self._total[...] = held + len(ids)


class VerificationVerdict:
    """Knows whether some calls of a decoder give the numbers of others.

    A verdict holds for one model, onnxruntime, processor and number of threads, and is kept in
    the user's cache folder, so that it is measured once.

    Args:
        model: identity of the model.
        folder: where verdicts are kept.
        kernels: version of the kernels and their processor, where those are not onnxruntime's own.
    """

    def __init__(
        self, model: str, threads: int, folder: Path | None = None, *, kernels: str = ""
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._threads = threads
        self._folder = folder
        self._verdict: bool | None = None
        self._measuring = threading.Lock()

    def settle(self, measure: Callable[[], bool | None]) -> bool:
        """Return the verdict, after a measurement where there is none yet.

        While one thread measures, it is False for the others.

        Args:
            measure: gives None where nothing can be measured. That counts as False, and is not
                kept.
        """
        if self._verdict is not None:
            return self._verdict
        if not self._measuring.acquire(blocking=False):
            return False
        try:
            verdict = self._read()
            if verdict is None:
                verdict = measure()
                if verdict is not None:
                    self._write(verdict)
            self._verdict = bool(verdict)
        finally:
            self._measuring.release()
        return self._verdict

    @cached_property
    def _conditions(self) -> dict[str, str]:
        cpu = cpu_info()
        # Some of onnxruntime's variables choose its kernels.
        settings = {key: value for key, value in os.environ.items() if key.startswith("ORT_")}
        return {
            "model": self._model,
            "threads": str(self._threads),
            "onnxruntime": ort.__version__,
            "kernels": self._kernels,
            "settings": json.dumps(settings, sort_keys=True),
            "processor": cpu.get("model name") or platform.processor() or platform.machine(),
            "features": cpu.get("flags") or cpu.get("Features") or "",
        }

    @property
    def _path(self) -> Path:
        folder = default_folder() if self._folder is None else self._folder
        conditions = json.dumps(self._conditions, sort_keys=True)
        return folder / f"{hashlib.sha256(conditions.encode()).hexdigest()[:32]}.json"

    def _read(self) -> bool | None:
        try:
            kept = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        equal = kept.get("equal") if isinstance(kept, dict) else None
        return equal if isinstance(equal, bool) else None

    def _write(self, verdict: bool) -> None:
        text = json.dumps({"equal": verdict, **self._conditions}, indent=2) + "\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, text)
        except OSError as error:
            _LOG.info("A verdict on batched verification was not kept: %s", error)


def default_folder() -> Path:
    """The folder for verdicts in the user's cache."""
    import platformdirs

    return platformdirs.user_cache_path("edgesdk", appauthor=False) / "batched-verification"
