"""One llama.cpp context that all sequences of a model share.

They live in one unified KV cache under ids of their own, so that a fork costs nothing and several
of them can go into one batch. The cache starts small; when a batch finds no room, a context of
twice the cells takes over its state.

Callers that want tokens at the same time share a batch: one pass over the weights serves them all.
llama.cpp rounds activations to 8 bits and takes other kernels for other batch sizes, so logits of
a step in a shared batch differ slightly from those of the same step alone, and a greedy answer may
go another way where two tokens are nearly as likely.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import time
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgesdk.engines.gguf.batching import (
    BATCH_ROWS,
    BATCH_TOKENS,
    SHARED_SLICE,
    BatchPlan,
    BatchPolicy,
    BatchRequest,
    BatchSlice,
    LogitsBuffer,
    TokenBatch,
)
from edgesdk.engines.gguf.combining_lock import CombiningLock, Ticket
from edgesdk.engines.gguf.library import AbortFlag, LlamaLibrary
from edgesdk.errors import EngineError
from edgesdk.system.cancellation import CancellationToken, Cancelled
from edgesdk.system.forks import ForkGuard

MAX_SEQUENCES = 64
FIRST_CELLS = 1024
_ABORTED = 2  # llama_decode was told to; what it had computed of the batch is gone
_NO_ROOM = 1  # llama_decode found no free cells; its state is as before


class _Aborted(Exception):
    """A batch ended because one of its calls was cancelled."""


@dataclass
class _Native:
    """The pointers to free; shared with the finalizer, which must not hold the context itself."""

    model: Any
    fork_guard: ForkGuard
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
        self.lock: CombiningLock[BatchRequest] = CombiningLock()
        self.fork_guard = ForkGuard("The model", EngineError)
        self._native = _Native(model, self.fork_guard)
        self._free = weakref.finalize(self, _free, library.api, self._native)
        vocab = self._api.llama_model_get_vocab(model)
        self.vocab_size: int = self._api.llama_vocab_n_tokens(vocab)
        self.vocab = vocab
        self._row_bytes = 4 * self.vocab_size
        self._max_cells = MAX_SEQUENCES * max(context_length, FIRST_CELLS)
        self._cells = FIRST_CELLS
        self._idle_ids = collections.deque(range(MAX_SEQUENCES))
        self._released_ids: collections.deque[int] = collections.deque()
        self._batch = TokenBatch(self._api, MAX_SEQUENCES)
        self._policy = BatchPolicy(self.lock)
        self._running: list[BatchSlice] = []
        self._abort = AbortFlag(library)
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
            EngineError: all ids are in use, or this process was forked after the model was loaded.
        """
        self.fork_guard.check()
        # Without the lock while there are some: an answer must not wait for others to begin.
        with contextlib.suppress(IndexError):
            return self._idle_ids.pop()
        with self.lock.exclusive():
            self._collect()
            if not self._idle_ids:
                raise EngineError(
                    f"{MAX_SEQUENCES} sequences of this model are open.", hint="Close one of them."
                )
            return self._idle_ids.pop()

    def release(self, seq_id: int) -> None:
        """Give an id and its cells back; takes no lock, so a finalizer may call it."""
        self._released_ids.append(seq_id)

    def decode(
        self,
        seq_id: int,
        ids: list[int],
        start: int,
        out: LogitsBuffer,
        cancellation: CancellationToken | None = None,
    ) -> None:
        """Run `ids` at positions from `start` on; the logits of the last `out.rows` go to `out`.

        Raises:
            EngineError: llama.cpp failed; the sequence may hold some of the positions.
            Cancelled: `cancellation` was cancelled or expired; likewise.
        """
        request = BatchRequest(seq_id, ids, start, out)
        if cancellation is None:
            self._serve(request)
        else:
            begun = time.perf_counter()
            try:
                with cancellation.on_cancel(partial(self._cancel, request)):
                    self._serve(request)
            finally:
                cancellation.queue_seconds += time.perf_counter() - begun - request.seconds
        if request.error is not None:
            raise request.error
        if not request.complete:
            raise Cancelled

    def remove(self, seq_id: int, start: int) -> bool:
        """Forget positions from `start` on; False where the cache can only forget them all."""
        with self.lock.exclusive():
            return self._remove(seq_id, start)

    def copy(self, source: int, target: int) -> None:
        """Let `target` share the cells of `source`."""
        with self.lock.exclusive():
            self._api.llama_memory_seq_cp(self._memory(), source, target, -1, -1)

    def state(self, seq_id: int) -> npt.NDArray[np.uint8]:
        """The KV cache of one sequence in llama.cpp's own layout."""
        with self.lock.exclusive():
            context = self._context()
            size = self._api.llama_state_seq_get_size(context, seq_id)
            state = np.empty(size, np.uint8)
            written = self._api.llama_state_seq_get_data(context, _bytes(state), size, seq_id)
            if written != size:
                raise self._error("llama.cpp could not copy out a sequence")
            return state

    def load_state(self, seq_id: int, state: npt.NDArray[np.uint8], length: int) -> bool:
        """Fill an empty sequence with what `state` returned; False where llama.cpp refuses it.

        Args:
            length: how many tokens `state` is of; only a state of that many is taken.
        """
        with self.lock.exclusive():
            if not self._set_state(seq_id, state):
                # Twice the cells and more always leave a free stretch for all of it.
                enough = self._cells + length
                while self._cells < enough:
                    self._grow()
                if not self._set_state(seq_id, state):
                    return False
            last = self._api.llama_memory_seq_pos_max(self._memory(), seq_id)
            return bool(last == length - 1)

    def close(self) -> None:
        """Free the context and the model; every later call raises EngineError."""
        if self.fork_guard.crossed:
            return
        with self.lock.exclusive():
            self._free()

    def _serve(self, request: BatchRequest) -> None:
        while not request.done:
            ticket = request.ticket = Ticket(request)
            if request.cancelled:
                return  # the ticket came too late to be cancelled
            try:
                if self.lock.acquire(ticket):
                    self._lead(request)
            finally:
                self.lock.release(ticket)

    def _cancel(self, request: BatchRequest) -> None:
        """End `request`, from another thread: its wait, or the batch that it is in."""
        request.cancelled = True
        if request.ticket is not None:
            self.lock.cancel(request.ticket)
        if any(piece.request is request for piece in self._running):
            self._abort.set()

    def _lead(self, mine: BatchRequest) -> None:
        """Run the next slice of `mine`, together with what others wait for."""
        # Before the policy looks for others: a sequence that is gone must not cut a prompt in two,
        # which would round otherwise.
        self._collect()
        self._policy.wait_for_others(mine)
        if mine.cancelled:
            return
        max_tokens = SHARED_SLICE if self._policy.shares(mine) else BATCH_TOKENS
        plan = BatchPlan(max_tokens, self._cells)
        plan.add(mine)
        taken = self.lock.take(plan.add)
        try:
            if taken:
                self._run_together(plan.slices)
            else:
                self._run(plan.slices)
        except _Aborted:
            pass  # those who still want their tokens wait for the next batch
        finally:
            for ticket in taken:
                if ticket.work is not None and ticket.work.done:
                    self.lock.finish(ticket)
                else:
                    self.lock.put_back(ticket)

    def _run_together(self, slices: list[BatchSlice]) -> None:
        """Run `slices` as one batch; if that fails each alone, so that each has its own error."""
        try:
            self._run(slices)
        except BaseException as error:
            # Some positions may be in the cache without being counted.
            for piece in slices:
                try:
                    self._remove(piece.request.seq_id, piece.request.start + piece.request.offset)
                except EngineError as closed:
                    piece.request.error = closed
            if not isinstance(error, EngineError):
                raise
            for piece in slices:
                if piece.request.error is None:
                    try:
                        self._run([piece])
                    except EngineError as own:
                        piece.request.error = own

    def _run(self, slices: list[BatchSlice]) -> None:
        """One batch.

        Raises:
            EngineError: llama.cpp failed.
            _Aborted: one of its calls was cancelled; no slice has moved on.
        """
        batch = self._batch.fill(slices)
        started = time.perf_counter()
        self._running = slices
        try:
            while (status := self._decode(batch)) != 0:
                if status == _ABORTED:
                    self._library.take_errors()
                    for piece in slices:
                        request = piece.request
                        self._remove(request.seq_id, request.start + request.offset)
                    if any(piece.request.cancelled for piece in slices):
                        raise _Aborted
                    # It was meant for the batch before.
                elif status != _NO_ROOM:
                    raise self._error(f"llama.cpp failed to run a batch (status {status})")
                elif not self._collect():
                    self._grow()
        finally:
            self._running = []
        address = 0
        for piece in slices:
            if piece.rows and not address:
                # The rows lie in the order of the batch.
                rows = self._api.llama_get_logits(self._context())
                address = ctypes.addressof(rows.contents)
            piece.commit(address, self._row_bytes)
            address += piece.rows * self._row_bytes
        seconds = time.perf_counter() - started
        for piece in slices:
            piece.request.seconds += seconds
        self._policy.record_batch(slices, seconds)

    def _decode(self, batch: Any) -> int:
        # `_cancel` sets `cancelled` first and then looks at `_running`, which is set by now: one of
        # the two sees the other.
        self._abort.clear()
        if any(piece.request.cancelled for piece in self._running):
            self._abort.set()
        return int(self._api.llama_decode(self._context(), batch))

    def _grow(self) -> None:
        cells = 2 * self._cells
        if cells > self._max_cells:
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
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = MAX_SEQUENCES
        params.n_outputs_max = params.n_outputs_max_per_seq = BATCH_ROWS
        params.kv_unified = True
        # A windowed cache that drops what it has slid past could not be rewound.
        params.swa_full = True
        params.n_threads = params.n_threads_batch = self._threads
        params.offload_kqv = params.op_offload = False
        self._abort.install(params, self._native.model)
        context = self._api.llama_init_from_model(self._native.model, params)
        if not context:
            raise self._error(f"llama.cpp could not make a KV cache of {cells} cells")
        return context

    def _collect(self) -> bool:
        found = bool(self._released_ids)
        while self._released_ids:
            seq_id = self._released_ids.popleft()
            self._remove(seq_id, 0)
            self._policy.forget(seq_id)
            self._idle_ids.append(seq_id)
        return found

    def _remove(self, seq_id: int, start: int) -> bool:
        return bool(self._api.llama_memory_seq_rm(self._memory(), seq_id, start, -1))

    def _set_state(self, seq_id: int, state: npt.NDArray[np.uint8]) -> bool:
        context = self._context()
        return bool(self._api.llama_state_seq_set_data(context, _bytes(state), state.size, seq_id))

    def _memory(self) -> Any:
        return self._api.llama_get_memory(self._context())

    def _context(self) -> Any:
        if self._native.context is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return self._native.context

    def _error(self, what: str) -> EngineError:
        said = self._library.take_errors()
        return EngineError(f"{what}: {said}." if said else f"{what}.")


def _bytes(array: npt.NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _free(api: Any, native: _Native) -> None:
    if native.fork_guard.crossed:
        # llama.cpp would wait for threads that a fork has not; the process takes its copy along.
        return
    if native.context is not None:
        api.llama_free(native.context)
        native.context = None
    if native.model is not None:
        api.llama_model_free(native.model)
        native.model = None
