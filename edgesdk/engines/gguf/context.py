"""One llama.cpp context that all sequences of a model share.

They live in one unified KV cache under ids of their own, so that a fork costs nothing and several
of them can go into one batch. The cache starts small; when a batch finds no room, a context of
twice the cells takes over its state.
"""

from __future__ import annotations

import collections
import ctypes
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.engines.base import Logits
from edgesdk.engines.gguf.library import LlamaLibrary
from edgesdk.errors import EngineError

MAX_SEQUENCES = 64
_FIRST_CELLS = 1024
_BATCH = 512
# llama.cpp keeps a logits row for each position that asks for one, so long "all" requests go
# through in parts.
_BATCH_ROWS = 64
_NO_ROOM = 1  # llama_decode found no free cells; its state is as before


class LogitsBuffer:
    """Room for `rows` rows of logits, float32 [rows, vocab], and where it lies in memory."""

    def __init__(self, rows: int, vocab_size: int) -> None:
        self.rows = rows
        self.array: Logits = np.empty((rows, vocab_size), np.float32)
        self.address: int = self.array.ctypes.data


@dataclass
class _Native:
    """The pointers to free; shared with the finalizer, which must not hold the context itself."""

    model: Any
    context: Any = None


class LlamaContext:
    """KV cache cells, sequence ids and the batch buffer. Safe to use from several threads.

    Args:
        model: a llama_model pointer, which the context owns from now on.
        context_length: most tokens that one sequence may hold.
    """

    def __init__(
        self, library: LlamaLibrary, model: Any, *, threads: int, context_length: int
    ) -> None:
        self._api = library.api
        self._library = library
        self._threads = threads
        self._lock = threading.Lock()
        self._native = _Native(model)
        self._free = weakref.finalize(self, _free, library.api, self._native)
        vocab = self._api.llama_model_get_vocab(model)
        self.vocab_size: int = self._api.llama_vocab_n_tokens(vocab)
        self.vocab = vocab
        self._row_bytes = 4 * self.vocab_size
        self._most_cells = MAX_SEQUENCES * max(context_length, _FIRST_CELLS)
        self._cells = _FIRST_CELLS
        self._idle_ids = list(range(MAX_SEQUENCES))
        self._abandoned_ids: collections.deque[int] = collections.deque()
        self._batch = _Batch(self._api)
        self._native.context = self._open(self._cells)

    @property
    def model(self) -> Any:
        """The llama_model pointer.

        Raises:
            EngineError: the engine is closed.
        """
        if self._native.model is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return self._native.model

    def acquire(self) -> int:
        """A sequence id without cells.

        Raises:
            EngineError: all ids are in use.
        """
        with self._lock:
            self._collect()
            if not self._idle_ids:
                raise EngineError(
                    f"{MAX_SEQUENCES} sequences of this model are open.", hint="Close one of them."
                )
            return self._idle_ids.pop()

    def release(self, sequence: int) -> None:
        """Give an id and its cells back."""
        with self._lock:
            if self._native.context is not None:
                self._remove(sequence, 0)
            self._idle_ids.append(sequence)

    def abandon(self, sequence: int) -> None:
        """Like `release`, at some later time; takes no lock, so a finalizer may call it."""
        self._abandoned_ids.append(sequence)

    def decode(self, sequence: int, ids: list[int], start: int, out: LogitsBuffer) -> None:
        """Run `ids` at positions from `start` on; the logits of the last `out.rows` go to `out`.

        Raises:
            EngineError: llama.cpp failed; the sequence may hold some of the positions.
        """
        with self._lock:
            count, rows, address = len(ids), out.rows, out.address
            offset = 0
            while offset < count:
                silent = max(count - rows - offset, 0)
                part = min(count - offset, _BATCH, silent + _BATCH_ROWS)
                wanted = max(part - silent, 0)
                self._run(self._batch.fill(sequence, ids[offset : offset + part], start, wanted))
                if wanted:
                    size = wanted * self._row_bytes
                    ctypes.memmove(address, self._api.llama_get_logits(self._context()), size)
                    address += size
                start += part
                offset += part

    def remove(self, sequence: int, start: int) -> bool:
        """Forget positions from `start` on; False where the cache can only forget them all."""
        with self._lock:
            return self._remove(sequence, start)

    def copy(self, source: int, target: int) -> None:
        """Let `target` share the cells of `source`."""
        with self._lock:
            self._api.llama_memory_seq_cp(self._memory(), source, target, -1, -1)

    def state(self, sequence: int) -> npt.NDArray[np.uint8]:
        """The KV cache of one sequence in llama.cpp's own layout."""
        with self._lock:
            context = self._context()
            size = self._api.llama_state_seq_get_size(context, sequence)
            state = np.empty(size, np.uint8)
            written = self._api.llama_state_seq_get_data(context, _bytes(state), size, sequence)
            if written != size:
                raise self._error("llama.cpp could not copy out a sequence")
            return state

    def load_state(self, sequence: int, state: npt.NDArray[np.uint8], length: int) -> bool:
        """Fill an empty sequence with what `state` returned; False where llama.cpp refuses it.

        Args:
            length: how many tokens `state` is of; only a state of that many is taken.
        """
        with self._lock:
            if not self._set_state(sequence, state):
                # Twice the cells and more always leave a free stretch for all of it.
                enough = self._cells + length
                while self._cells < enough:
                    self._grow()
                if not self._set_state(sequence, state):
                    return False
            last = self._api.llama_memory_seq_pos_max(self._memory(), sequence)
            return bool(last == length - 1)

    def close(self) -> None:
        """Free the context and the model; every later call raises EngineError."""
        with self._lock:
            self._free()

    def _run(self, batch: Any) -> None:
        while (status := self._api.llama_decode(self._context(), batch)) != 0:
            if status != _NO_ROOM:
                raise self._error(f"llama.cpp failed to run a batch (status {status})")
            if not self._collect():
                self._grow()

    def _grow(self) -> None:
        cells = 2 * self._cells
        if cells > self._most_cells:
            raise self._error(f"llama.cpp found no room in {self._cells} KV cache cells")
        old = self._context()
        size = self._api.llama_state_get_size(old)
        state = np.empty(size, np.uint8)
        self._api.llama_state_get_data(old, _bytes(state), size)
        new = self._open(cells)
        if self._api.llama_state_set_data(new, _bytes(state), size) == 0:
            self._api.llama_free(new)
            raise self._error(f"llama.cpp could not move its KV cache to {cells} cells")
        self._native.context = new
        self._cells = cells
        self._api.llama_free(old)

    def _open(self, cells: int) -> Any:
        params = self._api.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = MAX_SEQUENCES
        params.n_outputs_max = params.n_outputs_max_per_seq = _BATCH_ROWS
        params.kv_unified = True
        # A windowed cache that drops what it has slid past could not be rewound.
        params.swa_full = True
        params.n_threads = params.n_threads_batch = self._threads
        params.offload_kqv = params.op_offload = False
        context = self._api.llama_init_from_model(self._native.model, params)
        if not context:
            raise self._error(f"llama.cpp could not make a KV cache of {cells} cells")
        return context

    def _collect(self) -> bool:
        found = bool(self._abandoned_ids)
        while self._abandoned_ids:
            sequence = self._abandoned_ids.popleft()
            self._remove(sequence, 0)
            self._idle_ids.append(sequence)
        return found

    def _remove(self, sequence: int, start: int) -> bool:
        return bool(self._api.llama_memory_seq_rm(self._memory(), sequence, start, -1))

    def _set_state(self, sequence: int, state: npt.NDArray[np.uint8]) -> bool:
        context = self._context()
        return bool(
            self._api.llama_state_seq_set_data(context, _bytes(state), state.size, sequence)
        )

    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._context())

    def _context(self) -> Any:
        if self._native.context is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return self._native.context

    def _error(self, what: str) -> EngineError:
        said = self._library.take_errors()
        return EngineError(f"{what}: {said}." if said else f"{what}.")


class _Batch:
    """A llama_batch over numpy arrays, filled without a loop over tokens."""

    def __init__(self, api: Any) -> None:
        self._tokens = np.zeros(_BATCH, np.int32)
        self._positions = np.zeros(_BATCH, np.int32)
        self._counts = np.ones(_BATCH, np.int32)
        self._wanted = np.zeros(_BATCH, np.int8)
        self._range = np.arange(_BATCH, dtype=np.int32)
        # Every position of a batch belongs to one sequence, so all rows point at one id.
        self._id = np.zeros(1, np.int32)
        self._ids = np.full(_BATCH, self._id.ctypes.data, np.uintp)
        fields = dict(api.llama_batch._fields_)
        self._batch = api.llama_batch(
            n_tokens=0,
            token=ctypes.cast(self._tokens.ctypes.data, fields["token"]),
            pos=ctypes.cast(self._positions.ctypes.data, fields["pos"]),
            n_seq_id=ctypes.cast(self._counts.ctypes.data, fields["n_seq_id"]),
            seq_id=ctypes.cast(self._ids.ctypes.data, fields["seq_id"]),
            logits=ctypes.cast(self._wanted.ctypes.data, fields["logits"]),
        )

    def fill(self, sequence: int, tokens: list[int], start: int, wanted: int) -> Any:
        """The batch of `tokens` at positions from `start` on, logits for the last `wanted`."""
        count = len(tokens)
        self._id[0] = sequence
        # Single stores, because array operations are cold code after a pass over the weights.
        if count == 1:
            self._tokens[0] = tokens[0]
            self._positions[0] = start
            self._wanted[0] = wanted
        else:
            self._tokens[:count] = tokens
            np.add(self._range[:count], start, out=self._positions[:count])
            self._wanted[: count - wanted] = 0
            self._wanted[count - wanted : count] = 1
        self._batch.n_tokens = count
        return self._batch


def _bytes(array: npt.NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _free(api: Any, native: _Native) -> None:
    if native.context is not None:
        api.llama_free(native.context)
        native.context = None
    if native.model is not None:
        api.llama_model_free(native.model)
        native.model = None
