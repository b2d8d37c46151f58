"""Decodes one token sequence with a graph of any length on OpenVINO."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.bundle import graph_io
from edgesdk.bundle.manifest import ModelShape
from edgesdk.engines.base import (
    HiddenStates,
    Logits,
    Rows,
    checked_extension,
    checked_ids,
    checked_length,
    chunks,
)
from edgesdk.engines.openvino.library import reason
from edgesdk.engines.saved_state import (
    KvIdentity,
    StateMetadata,
    read_saved_state,
    write_saved_state,
)
from edgesdk.errors import EngineError, RequestError
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.forks import ForkGuard

# Keys and values [1, kv_heads, tokens, head_size], layer by layer. Nobody writes into them.
_Cache = tuple[npt.NDArray[np.float32], ...]
# Prompts are cut at multiples of so many tokens, so that a beginning that is computed again has
# calls of the same shapes, and the same numbers.
STEP = 128


@dataclass(frozen=True)
class LoadedDynamicModel:
    """What the states of one engine share.

    Attributes:
        compiled: an `openvino.CompiledModel`.
        inputs, outputs: of it, by the names that `edgesdk.bundle.graph_io` has for them.
    """

    compiled: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    shape: ModelShape
    context_length: int
    kv_identity: KvIdentity
    fork_guard: ForkGuard

    def empty_cache(self) -> _Cache:
        """The cache of no tokens."""
        size = (1, self.shape.kv_heads, 0, self.shape.head_size)
        return (np.zeros(size, np.float32),) * (2 * self.shape.layers)


class OpenVinoDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`."""

    def __init__(self, loaded: LoadedDynamicModel) -> None:
        self._loaded = loaded
        self._request: Any = loaded.compiled.create_infer_request()
        self._tokens: list[int] = []
        self._cache = loaded.empty_cache()
        self._latest: HiddenStates | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def hidden_states(self) -> HiddenStates | None:
        return self._latest

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        self._require_open()
        loaded, held = self._loaded, len(self._tokens)
        ids, rows = checked_extension(
            tokens,
            logits,
            held=held,
            vocab_size=loaded.shape.vocab_size,
            context_length=loaded.context_length,
        )
        first = held + len(ids) - rows
        cache, all_ids = self._cache, self._tokens + ids
        found: list[Logits] = []
        hidden: list[HiddenStates] = []
        for start, stop in chunks(held, len(all_ids), 1 if logits == "each" else STEP):
            if cancellation is not None:
                cancellation.raise_if_cancelled()
            each, states, cache = self._run(all_ids[start:stop], start, cache, first)
            # A graph gives a row at least, wanted or not.
            if stop > first:
                found.append(each)
                hidden += [] if states is None else [states]
        self._tokens, self._cache = all_ids, cache
        self._latest = np.concatenate(hidden) if hidden else None
        return np.concatenate(found)

    def rewind(self, length: int) -> None:
        self._require_open()
        length = checked_length(length, held=len(self._tokens))
        self._cache = tuple(np.ascontiguousarray(part[:, :, :length]) for part in self._cache)
        del self._tokens[length:]

    def fork(self) -> OpenVinoDecodeState:
        self._require_open()
        twin = OpenVinoDecodeState(self._loaded)
        twin._tokens, twin._cache = list(self._tokens), self._cache
        return twin

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        self._require_open()
        payload: list[npt.NDArray[Any]] = list(self._cache)
        write_saved_state(path, self._loaded.kv_identity, self._tokens, payload, metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        self._require_open()
        loaded, shape = self._loaded, self._loaded.shape
        tokens, metadata, payload = read_saved_state(path, loaded.kv_identity)
        if tokens:
            checked_ids(
                tokens,
                held=0,
                vocab_size=shape.vocab_size,
                context_length=loaded.context_length,
            )
        sizes = (2 * shape.layers, 1, shape.kv_heads, len(tokens), shape.head_size)
        if payload.size != np.dtype(np.float32).itemsize * int(np.prod(sizes)):
            raise RequestError(
                f"{path} has {payload.size} bytes of KV cache for {len(tokens)} tokens."
            )
        self._cache = tuple(payload.view(np.float32).reshape(sizes))
        self._tokens, self._latest = tokens, None
        return metadata

    def close(self) -> None:
        self._request, self._tokens, self._cache = None, [], ()

    def _run(
        self, ids: list[int], start: int, cache: _Cache, first: int
    ) -> tuple[Logits, HiddenStates | None, _Cache]:
        """Logits and hidden states of the positions from `first` on, and the longer cache.

        Raises:
            EngineError: OpenVINO failed, or this process was forked after the model was loaded.
        """
        loaded, stop = self._loaded, start + len(ids)
        loaded.fork_guard.check()
        values: dict[str, npt.NDArray[Any]] = {
            graph_io.INPUT_IDS: np.array([ids], np.int64),
            graph_io.LOGITS_FROM: np.array([min(max(first - start, 0), len(ids) - 1)], np.int64),
            graph_io.SEQLENS_K: np.array([stop - 1], np.int32),
            graph_io.TOTAL_SEQUENCE_LENGTH: np.array(stop, np.int32),
        }
        layers = range(loaded.shape.layers)
        past = (name for layer in layers for name in graph_io.past_names(layer))
        values |= dict(zip(past, cache, strict=True))
        try:
            results = self._request.infer(
                {loaded.inputs[name]: value for name, value in values.items()}, share_inputs=True
            )
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed: {reason(error)}.") from error
        found = {name: results[port] for name, port in loaded.outputs.items()}
        present = (name for layer in layers for name in graph_io.present_names(layer))
        hidden = found.get(graph_io.HIDDEN_STATES)
        return (
            found[graph_io.LOGITS][0],
            None if hidden is None else hidden[0],
            tuple(found[name] for name in present),
        )

    def _require_open(self) -> None:
        if self._request is None:
            raise EngineError("This decode state is closed.", hint="Ask the engine for a new one.")
