"""Decodes one token sequence on MLX.

MLX binds its streams to threads, so all that touches an array of an engine runs on the engine's
own thread, one call after another.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.engines.base import (
    HiddenStates,
    Logits,
    Rows,
    checked_extension,
    checked_ids,
    checked_length,
)
from edgesdk.engines.mlx.decoder import LayerCache, MlxDecoder
from edgesdk.engines.saved_state import (
    KvIdentity,
    StateMetadata,
    read_saved_state,
    write_saved_state,
)
from edgesdk.errors import EdgeError, EngineError, RequestError
from edgesdk.system.cancellation import CancellationToken, Cancelled
from edgesdk.system.forks import ForkGuard

_Result = TypeVar("_Result")
# Tokens that are computed at once; between two chunks a call can be cancelled.
_CHUNK = 512


@dataclass(frozen=True)
class LoadedMlxDecoder:
    """What the states of one engine share.

    Attributes:
        thread: the one thread that may touch the decoder's arrays.
        kv_shape: layers, keys and values, KV heads, and head size.
    """

    decoder: MlxDecoder
    thread: ThreadPoolExecutor
    dtype: mx.Dtype
    kv_shape: tuple[int, int, int, int]
    vocab_size: int
    context_length: int
    kv_identity: KvIdentity
    fork_guard: ForkGuard = field(default_factory=lambda: ForkGuard("The model", EngineError))

    def run(self, work: Callable[[], _Result], token: CancellationToken | None = None) -> _Result:
        """Do `work` on the engine's thread.

        Raises:
            EngineError: MLX failed, or this process was forked after the model was loaded.
        """
        self.fork_guard.check()
        submitted = perf_counter()

        def timed() -> _Result:
            if token is not None:
                token.queue_seconds += perf_counter() - submitted
            return work()

        try:
            return self.thread.submit(timed).result()
        except (EdgeError, Cancelled):
            raise
        # MLX raises ValueError and RuntimeError; a closed thread raises RuntimeError as well.
        except Exception as error:
            raise EngineError(f"MLX failed: {error}") from error


class MlxDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`."""

    def __init__(self, loaded: LoadedMlxDecoder) -> None:
        self._loaded = loaded
        self._tokens: list[int] = []
        self._cache: list[LayerCache] | None = loaded.run(loaded.decoder.new_cache)
        # How many of the tokens have keys and values; fewer only after a call that failed.
        self._computed = 0
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
        self._open_cache()
        loaded = self._loaded
        ids, rows = checked_extension(
            tokens,
            logits,
            held=len(self._tokens),
            vocab_size=loaded.vocab_size,
            context_length=loaded.context_length,
        )
        found, hidden = loaded.run(
            lambda: self._compute(ids, rows, logits == "each", cancellation), cancellation
        )
        self._tokens += ids
        self._latest = hidden
        return found

    def rewind(self, length: int) -> None:
        self._open_cache()
        length = checked_length(length, held=len(self._tokens))
        del self._tokens[length:]
        self._computed = min(self._computed, length)

    def fork(self) -> MlxDecodeState:
        cache = self._open_cache()
        twin = MlxDecodeState(self._loaded)
        twin._tokens = list(self._tokens)
        twin._computed = self._computed
        # Arrays are values: whoever appends first gets a copy.
        twin._cache = [LayerCache(layer.keys, layer.values) for layer in cache]
        return twin

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        self._open_cache()
        payload = self._loaded.run(self._payload)
        write_saved_state(path, self._loaded.kv_identity, self._tokens, payload, metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        self._open_cache()
        loaded = self._loaded
        tokens, metadata, payload = read_saved_state(path, loaded.kv_identity)
        layers, parts, heads, size = loaded.kv_shape
        bytes_per_token = layers * parts * heads * size * loaded.dtype.size
        if payload.size != bytes_per_token * len(tokens):
            raise RequestError(
                f"{path} has {payload.size} bytes of KV cache for {len(tokens)} tokens."
            )
        if tokens:
            checked_ids(
                tokens,
                held=0,
                vocab_size=loaded.vocab_size,
                context_length=loaded.context_length,
            )
        bits = {2: np.uint16, 4: np.uint32}[loaded.dtype.size]
        numbers = payload.view(bits).reshape(layers, parts, 1, heads, len(tokens), size)
        self._cache = loaded.run(lambda: _loaded_cache(numbers, loaded.dtype))
        self._tokens = tokens
        self._computed = len(tokens)
        return metadata

    def close(self) -> None:
        self._cache = None
        self._tokens = []

    def _compute(
        self, ids: list[int], rows: int, singly: bool, token: CancellationToken | None
    ) -> tuple[Logits, HiddenStates]:
        """Logits and hidden states of the last `rows` of `ids`; on the engine's thread."""
        cache = self._open_cache()
        decoder = self._loaded.decoder
        held = len(self._tokens)
        missing = self._tokens[self._computed :] + ids
        start, self._computed = self._computed, 0
        wanted: list[mx.array] = []
        first = held + len(ids) - rows
        for size in _chunk_sizes(len(missing), rows if singly else 0):
            if token is not None:
                token.raise_if_cancelled()
            hidden = decoder.hidden_states(missing[:size], cache, start)
            end = start + size
            if end > first:
                wanted.append(hidden[:, max(first - start, 0) :])
            mx.eval([part for layer in cache for part in (layer.keys, layer.values)], wanted)
            del missing[:size]
            start = end
        states = mx.concatenate(wanted, axis=1)
        # Kernels differ by the number of rows, so rows that are to be single steps' are computed
        # one by one here, too.
        parts = wanted if singly else [states]
        logits = mx.concatenate([decoder.logits(part) for part in parts], axis=1)
        found, latest = np.array(logits[0]), np.array(states[0].astype(mx.float32))
        self._computed = start
        return found, latest

    def _payload(self) -> list[npt.NDArray[np.generic]]:
        """Keys and values of all tokens, layer by layer, as unsigned integers of their bits."""
        if self._computed < len(self._tokens):
            missing, self._tokens = self._tokens[self._computed :], self._tokens[: self._computed]
            self._compute(missing, 1, False, None)
            self._tokens += missing
        bits = {2: mx.uint16, 4: mx.uint32}[self._loaded.dtype.size]
        length = len(self._tokens)
        return [
            np.array(part[:, :, :length].view(bits))
            for layer in self._open_cache()
            for part in (layer.keys, layer.values)
        ]

    def _open_cache(self) -> list[LayerCache]:
        if self._cache is None:
            raise EngineError("This decode state is closed.", hint="Ask the engine for a new one.")
        return self._cache


def _chunk_sizes(count: int, singles: int) -> list[int]:
    """Sizes of the chunks of so many tokens, of which the last `singles` come one by one."""
    whole, rest = divmod(count - singles, _CHUNK)
    return [_CHUNK] * whole + ([rest] if rest else []) + [1] * singles


def _loaded_cache(numbers: npt.NDArray[np.unsignedinteger], dtype: mx.Dtype) -> list[LayerCache]:
    """The cache of integers [layers, 2, 1, kv_heads, tokens, head_size] of the numbers' bits."""
    cache = [
        LayerCache(mx.array(keys).view(dtype), mx.array(values).view(dtype))
        for keys, values in numbers
    ]
    mx.eval([part for layer in cache for part in (layer.keys, layer.values)])
    return cache
