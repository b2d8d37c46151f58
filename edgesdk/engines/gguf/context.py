"""The sequences of a model, and the batches that serve them.

Callers want tokens at the same time. Where throughput matters most, they share a batch: one pass
over the weights serves them all. But llama.cpp takes other kernels for other batch sizes, which
round otherwise, and a greedy answer may go another way where two tokens are nearly as likely. So
by default each batch is of one sequence, in a KV cache of its own, and what is computed depends on
its tokens alone.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import time
from functools import partial
from typing import Any

from edgesdk.engines.gguf.batching import (
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
from edgesdk.engines.gguf.library import LlamaLibrary
from edgesdk.engines.gguf.native_model import Bytes, KvCaches, NativeModel
from edgesdk.engines.gguf.native_weights import NativeAdapter, NativeWeights
from edgesdk.engines.gguf.separate_caches import SeparateCaches
from edgesdk.engines.gguf.shared_cache import MAX_SEQUENCES, SharedCache
from edgesdk.errors import EngineError
from edgesdk.system.cancellation import CancellationToken, Cancelled

_ABORTED = 2  # llama_decode was told to; what it had computed of the batch is gone
_NO_ROOM = 1  # llama_decode found no free cells; its state is as before


class _Aborted(Exception):
    """A batch ended because one of its calls was cancelled."""


class LlamaContext:
    """Sequence ids, and who waits for what. Safe to use from several threads.

    Args:
        weights: the model's, which the contexts of its adapters share.
        context_length: most tokens that one sequence may hold.
        batch_invariant: whether what is computed depends on a sequence's tokens alone; else
            several sequences share batches, unless layers see a window only: in a cache that is
            shared, what a window has slid past is lost to a rewind.
        adapter: what all sequences here are changed by; None for the model alone.
    """

    def __init__(
        self,
        library: LlamaLibrary,
        weights: NativeWeights,
        *,
        threads: int,
        context_length: int,
        batch_invariant: bool,
        adapter: NativeAdapter | None = None,
    ) -> None:
        self._api = library.api
        self._library = library
        self.lock: CombiningLock[BatchRequest] = CombiningLock()
        self.fork_guard = weights.fork_guard
        self._policy = BatchPolicy(self.lock)
        self._native = NativeModel(library, weights, threads=threads, adapter=adapter)
        self.batch_invariant = batch_invariant or self._native.windowed
        self.windowed = self._native.windowed
        self._kv: KvCaches
        if self.batch_invariant:
            self._kv = SeparateCaches(self._native, rests=self._policy.rests)
        else:
            self._kv = SharedCache(self._native, context_length=context_length)
        vocab = self._api.llama_model_get_vocab(weights.pointer)
        self.vocab_size: int = self._api.llama_vocab_n_tokens(vocab)
        self.vocab = vocab
        self._row_bytes = 4 * self.vocab_size
        self._idle_ids = collections.deque(range(MAX_SEQUENCES))
        self._released_ids: collections.deque[int] = collections.deque()
        self._batch = TokenBatch(self._api, MAX_SEQUENCES)
        self._running: list[BatchSlice] = []

    @property
    def weights(self) -> NativeWeights:
        """The model's weights.

        Raises:
            EngineError: the engine is closed.
        """
        return self._native.weights

    @property
    def model(self) -> Any:
        """The llama_model pointer.

        Raises:
            EngineError: the engine is closed.
        """
        return self._native.pointer

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
        *,
        verifies: bool = False,
    ) -> None:
        """Run `ids` at positions from `start` on; the logits of the last `out.rows` go to `out`.

        Args:
            verifies: see `BatchRequest`.

        Raises:
            EngineError: llama.cpp failed; the sequence may hold some of the positions.
            Cancelled: `cancellation` was cancelled or expired; likewise.
        """
        request = BatchRequest(seq_id, ids, start, out, verifies)
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
            return self._kv.truncate(seq_id, start)

    def copy(self, source: int, target: int) -> None:
        """Let the empty `target` hold what `source` holds."""
        with self.lock.exclusive():
            self._kv.copy(source, target)

    def state(self, seq_id: int) -> Bytes:
        """The KV cache of one sequence in llama.cpp's own layout; not to be written to."""
        with self.lock.exclusive():
            return self._kv.state(seq_id)

    def load_state(self, seq_id: int, state: Bytes, length: int) -> bool:
        """Fill an empty sequence with what `state` returned; False where llama.cpp refuses it.

        Args:
            length: how many tokens `state` is of; only a state of that many is taken.
        """
        with self.lock.exclusive():
            return self._kv.load(seq_id, state, length)

    def close(self) -> None:
        """Free the contexts, and the model where nobody else has it; every later call raises
        EngineError."""
        if self.fork_guard.crossed:
            return
        with self.lock.exclusive():
            self._native.close()

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
            self._native.abort.set()

    def _lead(self, mine: BatchRequest) -> None:
        """Run the next slice of `mine`, together with what others wait for."""
        # Before the policy looks for others: a sequence that is gone must not cut a prompt in two,
        # which would round otherwise.
        self._collect()
        if not self.batch_invariant:
            self._policy.wait_for_others(mine)
        if mine.cancelled:
            return
        max_tokens = SHARED_SLICE if self._policy.shares(mine) else BATCH_TOKENS
        plan = BatchPlan(max_tokens, self._kv.cells, invariant=self.batch_invariant)
        plan.add(mine)
        taken = [] if self.batch_invariant else self.lock.take(plan.add)
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
                    request = piece.request
                    self._kv.truncate(request.seq_id, request.start + request.offset)
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
        started = time.perf_counter()
        context, native_ids = self._place(slices)
        batch = self._batch.fill(slices, native_ids)
        self._running = slices
        try:
            while (status := self._decode(context, batch)) != 0:
                if status == _ABORTED:
                    self._library.take_errors()
                    for piece in slices:
                        request = piece.request
                        self._kv.truncate(request.seq_id, request.start + request.offset)
                    if any(piece.request.cancelled for piece in slices):
                        raise _Aborted
                    # It was meant for the batch before.
                elif status != _NO_ROOM:
                    raise self._native.error(f"llama.cpp failed to run a batch (status {status})")
                elif not self._collect():
                    self._kv.make_room()
                    context, _ = self._place(slices)
        finally:
            self._running = []
        address = 0
        for piece in slices:
            if piece.rows and not address:
                # The rows lie in the order of the batch.
                rows = self._api.llama_get_logits(context)
                address = ctypes.addressof(rows.contents)
            piece.commit(address, self._row_bytes)
            address += piece.rows * self._row_bytes
        seconds = time.perf_counter() - started
        for piece in slices:
            piece.request.seconds += seconds
        self._policy.record_batch(slices, seconds)

    def _place(self, slices: list[BatchSlice]) -> tuple[Any, list[int]]:
        """The llama_context to compute `slices` in, and the ids of their sequences there."""
        places = [
            self._kv.place(piece.request.seq_id, piece.request.start + piece.end)
            for piece in slices
        ]
        return places[0].context, [place.native_id for place in places]

    def _decode(self, context: Any, batch: Any) -> int:
        # `_cancel` sets `cancelled` first and then looks at `_running`, which is set by now: one of
        # the two sees the other.
        self._native.abort.clear()
        if any(piece.request.cancelled for piece in self._running):
            self._native.abort.set()
        return int(self._api.llama_decode(context, batch))

    def _collect(self) -> bool:
        found = bool(self._released_ids)
        while self._released_ids:
            seq_id = self._released_ids.popleft()
            self._kv.forget(seq_id)
            self._policy.forget(seq_id)
            self._idle_ids.append(seq_id)
        return found
