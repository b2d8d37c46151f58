"""Decodes one token sequence on an ONNX decoder.

Every buffer is a numpy array that onnxruntime reads and writes in place: a token costs a few
stores into small arrays and one call. Only a buffer whose shape changes is bound again.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from pydantic import JsonValue

from edgesdk.bundle import graph_io
from edgesdk.engines.base import (
    HiddenStates,
    Logits,
    Rows,
    checked_extension,
    checked_ids,
    checked_length,
)
from edgesdk.engines.onnx.kv_cache import KvCache, StateCache
from edgesdk.engines.onnx.loaded_decoder import LoadedDecoder
from edgesdk.engines.onnx.long_calls import SHORT_CALL, long_calls_are_right
from edgesdk.engines.onnx.verification_batch import (
    MAX_VERIFIED_TOKENS,
    VerificationBatch,
)
from edgesdk.engines.saved_state import (
    StateMetadata,
    read_saved_state,
    write_saved_state,
)
from edgesdk.errors import EngineError, RequestError
from edgesdk.system.cancellation import CancellationToken, Cancelled

# Enough for kernels to share the work among threads, where they ever do.
_MEASURED_TOKENS = 512


class OnnxDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`."""

    def __init__(self, decoder: LoadedDecoder) -> None:
        self._decoder = decoder
        self._tokens: list[int] = []
        self._closed = False
        self._binding = ort.IOBinding(decoder.session)
        self._run_options = ort.RunOptions()
        self._cache = decoder.empty_cache()
        self._bound: tuple[tuple[Any, Any], ...] = ()
        self._rope: Mapping[str, ort.OrtValue] = {}
        self._batches: dict[int, VerificationBatch] = {}
        self._logits_from = np.zeros(1, np.int64)
        self._last_position = np.zeros(1, np.int32)
        self._total = np.zeros((), np.int32)
        self._ids: npt.NDArray[np.int64] = np.zeros((1, 0), np.int64)
        if decoder.device is None:
            self._bind_scalars()
        else:
            # What the collector takes is freed when nobody computes.
            weakref.finalize(self, decoder.device.access.discard, vars(self))
        self._rows: Logits = np.zeros((0, decoder.vocab_size), np.float32)
        self._hidden: HiddenStates | None = None
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
        self.check_open()
        decoder = self._decoder
        ids, rows = checked_extension(
            tokens,
            logits,
            held=len(self._tokens),
            vocab_size=decoder.vocab_size,
            context_length=decoder.context_length,
        )
        count, total = len(ids), len(self._tokens) + len(ids)
        # Else the last row would be alone in its part of the attention, and round as a single step.
        if logits != "each" and count > 1 and count % decoder.attention_rows == 1:
            return self._extend_in_parts(ids, count - 3, logits, cancellation)
        with decoder.access:
            short = logits == "each" or count <= SHORT_CALL
            if not short and not self._can_take_long_calls(cancellation):
                return self._extend_in_parts(ids, SHORT_CALL, logits, cancellation)
            return self._compute(ids, total, rows, logits, cancellation)

    def _compute(
        self,
        ids: list[int],
        total: int,
        rows: int,
        logits: Rows,
        cancellation: CancellationToken | None,
    ) -> Logits:
        count, held = len(ids), len(self._tokens)
        try:
            self._reserve(total)
            if logits == "each" and count > 1:
                if not self._can_batch(count, cancellation):
                    return self._extend_in_parts(ids, 1, "all", cancellation)
                found = self._run_batch(ids, cancellation)
            else:
                found = self._run_rows(ids, rows, cancellation)
        except (Cancelled, EngineError):
            raise
        # onnxruntime's exceptions have no common base. Keys and values past `held` may have been
        # written; nothing reads them, because the length has not moved.
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed on {count} tokens after {held}: {error}"
            ) from error
        self._tokens += ids
        return found

    def rewind(self, length: int) -> None:
        self.check_open()
        del self._tokens[checked_length(length, held=len(self._tokens)) :]

    def fork(self) -> OnnxDecodeState:
        self.check_open()
        twin = OnnxDecodeState(self._decoder)
        with self._decoder.access:
            twin._cache = self._cache.copy(len(self._tokens))
        twin._tokens = list(self._tokens)
        return twin

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        self.check_open()
        with self._decoder.access:
            payload = self._cache.dump(len(self._tokens))
            write_saved_state(path, self._decoder.kv_identity, self._tokens, payload, metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        self.check_open()
        decoder = self._decoder
        tokens, metadata, payload = read_saved_state(path, decoder.kv_identity)
        length = len(tokens)
        numbers = decoder.cache_shape.elements(length)
        if payload.size != numbers * np.dtype(np.float32).itemsize:
            raise RequestError(f"{path} has {payload.size} bytes of KV cache for {length} tokens.")
        if length:
            checked_ids(
                tokens,
                held=0,
                vocab_size=decoder.vocab_size,
                context_length=decoder.context_length,
            )
        self._hold(tokens, payload.view(np.float32))
        return metadata

    def take_over(self, other: OnnxDecodeState) -> None:
        """Hold what `other` holds, a state of the same model on whatever device."""
        with other._decoder.access:
            parts = [part.ravel() for part in other._cache.dump(len(other._tokens))]
        numbers = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        self._hold(list(other._tokens), numbers)

    def _hold(self, tokens: list[int], numbers: npt.NDArray[np.float32]) -> None:
        cache = self._decoder.empty_cache()
        with self._decoder.access:
            if tokens:
                cache.reserve(len(tokens), used=0, limit=self._decoder.context_length)
                cache.load(numbers, len(tokens))
            self._cache = cache
        self._tokens = tokens

    def close(self) -> None:
        self._closed = True
        self._tokens = []
        device = self._decoder.device
        if device is not None:
            device.access.discard(self._binding, self._cache, self._bound, self._rope)
            self._binding = ort.IOBinding(self._decoder.session)
        self._cache = self._decoder.empty_cache()
        self._bound = ()
        self._rope = {}
        self._batches.clear()
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()

    def _run(self, binding: ort.IOBinding, cancellation: CancellationToken | None) -> None:
        """Run, unless and until `cancellation` stops: onnxruntime looks before each operator."""
        session = self._decoder.session
        if cancellation is None:
            session.run_with_iobinding(binding)
            return
        options = self._run_options
        # May be left from a call that was through when its caller stopped.
        options.terminate = False
        with cancellation.on_cancel(self._terminate):
            try:
                session.run_with_iobinding(binding, options)
            except Exception as error:
                if options.terminate:
                    raise Cancelled from error
                raise

    def _terminate(self) -> None:
        self._run_options.terminate = True

    def _reserve(self, total: int) -> None:
        if total > self._cache.capacity:
            limit = self._decoder.context_length
            self._cache.reserve(total, used=len(self._tokens), limit=limit)

    def _can_batch(self, count: int, cancellation: CancellationToken | None) -> bool:
        """Make the cache ready for a batch of `count` tokens; False where none may be run."""
        decoder, cache = self._decoder, self._cache
        if count > MAX_VERIFIED_TOKENS or decoder.verdict is None:
            return False
        if not decoder.verdict.settle(lambda: batches_equal_single_steps(decoder, cancellation)):
            return False
        try:
            _in_host_memory(cache).alias(MAX_VERIFIED_TOKENS, used=len(self._tokens))
        except OSError:
            return False
        return True

    def _can_take_long_calls(self, cancellation: CancellationToken | None) -> bool:
        """Whether calls for many tokens are right on this device."""
        decoder = self._decoder
        if decoder.device is None:
            return True

        def run(ids: list[int], at_once: bool) -> Logits:
            state = OnnxDecodeState(decoder)
            if at_once:
                return state._compute(ids, len(ids), 1, "last", cancellation)
            return state._extend_in_parts(ids, SHORT_CALL, "last", cancellation)

        return decoder.device.long_calls.settle(
            lambda: long_calls_are_right(run, decoder.vocab_size, decoder.context_length)
        )

    def _extend_in_parts(
        self, ids: list[int], size: int, logits: Rows, cancellation: CancellationToken | None
    ) -> Logits:
        """`extend` by calls for up to `size` tokens each."""
        held = len(self._tokens)
        found: list[Logits] = []
        states: list[HiddenStates] = []
        rows: Rows = "last" if logits == "last" else "all"
        try:
            for start in range(0, len(ids), size):
                if rows == "last":
                    found.clear()
                    states.clear()
                part = ids[start : start + size]
                found.append(self.extend(part, logits=rows, cancellation=cancellation).copy())
                if self._latest is not None:
                    states.append(self._latest.copy())
        except BaseException:
            del self._tokens[held:]
            raise
        self._latest = np.concatenate(states) if states else None
        return np.concatenate(found)

    def _run_batch(
        self, ids: list[int], cancellation: CancellationToken | None, *, backwards: bool = False
    ) -> Logits:
        batch, cache = self._batches.get(len(ids)), _in_host_memory(self._cache)
        if batch is None or not batch.fits(cache):
            decoder = self._decoder
            batch = VerificationBatch(
                decoder.session,
                cache,
                {**decoder.rope_tables.inputs(cache.capacity), **decoder.low_rank},
                len(ids),
                decoder.vocab_size,
                decoder.hidden_size,
            )
            self._batches[len(ids)] = batch
        batch.set(ids, len(self._tokens), backwards=backwards)
        self._run(batch.binding, cancellation)
        self._latest = batch.hidden_states
        return batch.logits

    def _run_rows(
        self, ids: list[int], rows: int, cancellation: CancellationToken | None
    ) -> Logits:
        count, total = len(ids), len(self._tokens) + len(ids)
        self._prepare(count, rows)
        if count == 1:
            self._ids[0, 0] = ids[0]
        else:
            self._ids[0] = ids
        self._logits_from[0] = count - rows
        self._last_position[0] = total - 1
        self._total[...] = total
        if self._decoder.device is not None:
            # Binding copied what was in them to the device.
            self._bind_input(graph_io.INPUT_IDS, self._ids)
            self._bind_scalars()
        self._run(self._binding, cancellation)
        self._latest = self._hidden
        return self._rows

    def _prepare(self, count: int, rows: int) -> None:
        if self._bound is not self._cache.buffers:
            self._bind_cache()
        if count != self._ids.shape[1]:
            room: npt.NDArray[np.int64] = np.zeros((1, count), np.int64)
            self._bind_input(graph_io.INPUT_IDS, room)
            self._ids = room
        if rows != self._rows.shape[0]:
            self._rows = self._bind_output(graph_io.LOGITS, rows, self._decoder.vocab_size)
            if self._decoder.hidden_size is not None:
                size = self._decoder.hidden_size
                self._hidden = self._bind_output(graph_io.HIDDEN_STATES, rows, size)

    def _bind_cache(self) -> None:
        buffers = self._cache.buffers
        for layer, pair in enumerate(buffers):
            names = zip(graph_io.past_names(layer), graph_io.present_names(layer), strict=True)
            for (past, present), buffer in zip(names, pair, strict=True):
                value = buffer
                if isinstance(buffer, np.ndarray):
                    value = ort.OrtValue.ortvalue_from_numpy(buffer)
                self._binding.bind_ortvalue_input(past, value)
                self._binding.bind_ortvalue_output(present, value)
        self._rope = self._decoder.rope_tables.inputs(self._cache.capacity)
        for name, value in {**self._rope, **self._decoder.low_rank}.items():
            self._binding.bind_ortvalue_input(name, value)
        self._bound = buffers

    def _bind_scalars(self) -> None:
        self._bind_input(graph_io.LOGITS_FROM, self._logits_from)
        self._bind_input(graph_io.SEQLENS_K, self._last_position)
        self._bind_input(graph_io.TOTAL_SEQUENCE_LENGTH, self._total)

    def _bind_input(self, name: str, array: npt.NDArray[np.generic]) -> None:
        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def _bind_output(self, name: str, rows: int, columns: int) -> npt.NDArray[np.float32]:
        room = np.empty((rows, columns), np.float32)
        value = ort.OrtValue.ortvalue_from_numpy(room[np.newaxis])
        self._binding.bind_ortvalue_output(name, value)
        return room

    def check_open(self) -> None:
        """Raise EngineError if the state is closed, or is a fork's of another process."""
        self._decoder.fork_guard.check()
        if self._closed:
            raise EngineError("This decode state is closed.", hint="Ask the engine for a new one.")

    def _fill(self, length: int) -> None:
        """Hold `length` tokens with random keys and values, without computing anything."""
        decoder = self._decoder
        shape = decoder.cache_shape
        self._cache.reserve(length + MAX_VERIFIED_TOKENS, used=0, limit=decoder.context_length)
        numbers = np.random.default_rng(0).standard_normal(shape.elements(length), np.float32)
        self._cache.load(numbers, length)
        self._tokens = [0] * length


def _in_host_memory(cache: StateCache) -> KvCache:
    """The cache, which batches need in the host's memory; only decoders that have it there have a
    verdict on batches."""
    assert isinstance(cache, KvCache), "this decoder has no verdict on batches"
    return cache


def batches_equal_single_steps(
    decoder: LoadedDecoder, cancellation: CancellationToken | None = None
) -> bool | None:
    """Measure whether batches of any size give the logits of single steps, bit for bit.

    In a batch the tokens stand backwards. A kernel that reads what another row has yet to write
    then reads it too early each time, and not only when its threads happen to race.

    Returns:
        None where that cannot be measured, for lack of memory or of context.

    Raises:
        Cancelled: before there was an answer.
    """
    length = min(_MEASURED_TOKENS, decoder.context_length - MAX_VERIFIED_TOKENS)
    if length < 1:
        return None
    ids = np.random.default_rng(1).integers(0, decoder.vocab_size, MAX_VERIFIED_TOKENS).tolist()
    try:
        state = OnnxDecodeState(decoder)
        state._fill(length)
        # Its cache is empty behind `length`, so that a row read too early is a wrong one.
        start = state.fork()
        # Fails where the system has no such memory, before anything is computed.
        _in_host_memory(start._cache).alias(MAX_VERIFIED_TOKENS, used=length)
        single = state._extend_in_parts(ids, 1, "all", cancellation)
        for count in range(2, MAX_VERIFIED_TOKENS + 1):
            trial = start.fork()
            _in_host_memory(trial._cache).alias(MAX_VERIFIED_TOKENS, used=length)
            rows = trial._run_batch(ids[:count], cancellation, backwards=True)[::-1]
            if not np.array_equal(rows, single[:count]):
                return False
    except Cancelled:
        raise
    # Memory, or onnxruntime, whose exceptions have no common base. Single steps still work.
    except Exception:
        return None
    return True
