"""Tokens that follow one another, computed in one call by the kernels of one token.

onnxruntime's attention takes other kernels for several rows than for one; their sums differ in
the last bits, which the 8-bit activations of quantized matrices blow up to other logits. But the
rows of a batch are each computed as one row alone. So a batch is made of the tokens: row i is a
sequence that ends at token i, and all of them see the same KV cache. Each writes its own key and
value there, and the operator must do all the writing before it reads. That is an order that no
document promises, so it is relied on only for releases that were read and tested; besides,
`edgesdk.generation.batched_verification` measures before anything depends on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from edgesdk.bundle import graph_io
from edgesdk.engines.base import HiddenStates, Logits
from edgesdk.engines.onnx.kv_cache import KvCache

# As many as a batch can have.
MAX_VERIFIED_TOKENS = 8

# contrib_ops/cpu/bert/gqa_attention_base.h of these: the flash path puts all new keys and values
# into the cache, then reads. The path for soft caps does both head by head, on several threads.
_READ_RELEASES = ("1.31.",)
_NO_FLASH = "ORT_GQA_DISABLE_FLASH_ATTENTION"


def verifies_in_batches(spec: Mapping[str, Any], release: str = ort.__version__) -> bool:
    """Whether the attention of a bundle is known to do all its writing before it reads.

    Args:
        spec: of the bundle's manifest; one that says nothing of soft caps is not known.
        release: of onnxruntime.
    """
    uncapped = spec.get("attention_softcap", "unknown") is None
    return uncapped and release.startswith(_READ_RELEASES) and not os.environ.get(_NO_FLASH)


class VerificationBatch:
    """Buffers and bindings for batches of `rows` tokens on one state of a cache.

    Args:
        cache: spread over `MAX_VERIFIED_TOKENS` copies.
        hidden_size: None where the graph gives no hidden states.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: KvCache,
        rows: int,
        vocab_size: int,
        hidden_size: int | None,
    ) -> None:
        self.binding = ort.IOBinding(session)
        self._stacks = cache.views
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
        for layer, pair in enumerate(self._stacks):
            names = zip(graph_io.past_names(layer), graph_io.present_names(layer), strict=True)
            for (past, present), stack in zip(names, pair, strict=True):
                value = ort.OrtValue.ortvalue_from_numpy(stack[:rows])
                self.binding.bind_ortvalue_input(past, value)
                self.binding.bind_ortvalue_output(present, value)
        for name, room in ((graph_io.LOGITS, self._logits), (graph_io.HIDDEN_STATES, self._hidden)):
            if room is not None:
                out = ort.OrtValue.ortvalue_from_numpy(room)
                self.binding.bind_ortvalue_output(name, out)

    def fits(self, cache: KvCache) -> bool:
        """Whether the cache is still the one that is bound here."""
        return self._stacks is cache.views

    @property
    def logits(self) -> Logits:
        """After each token of the last run, float32 [rows, vocab]."""
        return self._logits[:, 0]

    @property
    def hidden_states(self) -> HiddenStates | None:
        """What these logits are made of, float32 [rows, hidden]."""
        return None if self._hidden is None else self._hidden[:, 0]

    def set(self, ids: list[int], held: int) -> None:
        """What the next run computes: `ids`, behind `held` tokens."""
        self._ids[:, 0] = ids
        np.add(self._offsets, held, out=self._last_positions)
        self._total[...] = held + len(ids)
