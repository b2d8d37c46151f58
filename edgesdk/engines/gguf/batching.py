"""Fills llama.cpp batches with slices of requests, and decides which callers share a batch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesdk.engines.base import Logits
from edgesdk.engines.gguf.combining_lock import CombiningLock, Ticket
from edgesdk.errors import EngineError

BATCH_TOKENS = 512
# llama.cpp keeps a logits row for each position that asks for one, so long "all" requests go
# through in slices.
BATCH_ROWS = 64
# ggml's kernels round by how many rows a batch has: matrices in groups of 4 rows, or from 8 rows on
# (ggml-cpu/repack.cpp, tiled.cpp), attention from 64 rows on (ops.cpp). So where numbers are to
# depend on nothing else, a prompt is cut at multiples of this position: whole groups make a batch
# of any length, with the same numbers in each, and what is left over is a batch of its own.
PREFILL_STEP = 64
# While others want tokens too, a long prompt goes through in slices of this size: a step of theirs
# then waits for so many positions at most.
SHARED_SLICE = 64
_MAX_STEP_TOKENS = 8  # tokens of a step; drafts are checked in one
# A step waits for the others of the batch before it, which their callers are choosing tokens for:
# for this share of that batch's time at most. When that was in vain, so many batches do not wait.
_MAX_WAIT_SHARE = 0.5
_BATCHES_WITHOUT_WAITING = 16
# A sequence that none of so many batches served has ended its answer, or waits for its app.
_BATCHES_TO_REST = 16


class LogitsBuffer:
    """Room for `rows` rows of logits, float32 [rows, vocab], and where it lies in memory."""

    def __init__(self, rows: int, vocab_size: int) -> None:
        self.rows = rows
        self.array: Logits = np.empty((rows, vocab_size), np.float32)
        self.address: int = self.array.ctypes.data


@dataclass(eq=False)
class BatchRequest:
    """A call of `decode` under way.

    Attributes:
        start: position of the first of `ids`.
        out: takes the logits of the last `out.rows` of them.
        verifies: whether all rows have to be those of single steps as nearly as kernels allow.
        offset: how many of them are computed.
        seconds: what the batches with slices of it took.
        ticket: its caller's place in the queue; None before the first.
        cancelled: nobody wants the rest of it.
        error: what went wrong; the request has then ended.
    """

    seq_id: int
    ids: list[int]
    start: int
    out: LogitsBuffer
    verifies: bool = False
    offset: int = 0
    seconds: float = 0.0
    ticket: Ticket[BatchRequest] | None = None
    cancelled: bool = False
    error: EngineError | None = None

    @property
    def done(self) -> bool:
        return self.cancelled or self.error is not None or self.complete

    @property
    def complete(self) -> bool:
        return self.offset == len(self.ids)


@dataclass(frozen=True)
class BatchSlice:
    """`count` tokens of a request from its offset on; logits for the last `rows` of them."""

    request: BatchRequest
    count: int
    rows: int

    @property
    def end(self) -> int:
        """How many tokens of the request are computed after it."""
        return self.request.offset + self.count

    def commit(self, source: int, row_bytes: int) -> None:
        """Copy the rows at address `source` to where the caller wants them, and move on."""
        request = self.request
        if self.rows:
            before = request.offset + self.count - self.rows
            row = before - (len(request.ids) - request.out.rows)
            target = request.out.address + row * row_bytes
            ctypes.memmove(target, source, self.rows * row_bytes)
        request.offset += self.count


class BatchPlan:
    """Collects slices while tokens and rows of one batch last.

    Args:
        max_tokens: of one request.
        cells: of the KV cache; llama.cpp ends the process at a batch of more tokens.
        invariant: cut a prompt only where the numbers are always the same.
    """

    def __init__(self, max_tokens: int, cells: int, *, invariant: bool = False) -> None:
        self.slices: list[BatchSlice] = []
        self._max_tokens = max_tokens
        self._invariant = invariant
        self._tokens = min(BATCH_TOKENS, cells)
        self._rows = BATCH_ROWS

    def add(self, request: BatchRequest) -> bool:
        """Plan the next slice of `request`; False where nothing of it has room."""
        left = len(request.ids) - request.offset
        silent = max(left - request.out.rows, 0)
        count = min(left, self._max_tokens, self._tokens, silent + self._rows)
        if count == 0:
            return False
        if self._invariant and not request.verifies:
            count = _cut(request.start + request.offset, left, count)
        rows = max(count - silent, 0)
        self._tokens -= count
        self._rows -= rows
        self.slices.append(BatchSlice(request, count, rows))
        return True


def _cut(start: int, left: int, count: int) -> int:
    """How many of `left` tokens from position `start` on to compute, at most `count` of them."""
    past = start % PREFILL_STEP
    if past:
        return min(left, PREFILL_STEP - past)
    return left if left < PREFILL_STEP else count // PREFILL_STEP * PREFILL_STEP


class TokenBatch:
    """A llama_batch over numpy arrays, filled without a loop over tokens."""

    def __init__(self, api: Any, num_states: int) -> None:
        self._tokens = np.zeros(BATCH_TOKENS, np.int32)
        self._positions = np.zeros(BATCH_TOKENS, np.int32)
        self._counts = np.ones(BATCH_TOKENS, np.int32)
        self._wanted = np.zeros(BATCH_TOKENS, np.int8)
        self._range = np.arange(BATCH_TOKENS, dtype=np.int32)
        # Every position belongs to one sequence: its entry points at that id in this table.
        self._table = np.arange(num_states, dtype=np.int32)
        self._table_at: int = self._table.ctypes.data
        self._ids = np.full(BATCH_TOKENS, self._table_at, np.uintp)
        fields = dict(api.llama_batch._fields_)
        self._batch = api.llama_batch(
            n_tokens=0,
            token=ctypes.cast(self._tokens.ctypes.data, fields["token"]),
            pos=ctypes.cast(self._positions.ctypes.data, fields["pos"]),
            n_seq_id=ctypes.cast(self._counts.ctypes.data, fields["n_seq_id"]),
            seq_id=ctypes.cast(self._ids.ctypes.data, fields["seq_id"]),
            logits=ctypes.cast(self._wanted.ctypes.data, fields["logits"]),
        )

    def fill(self, slices: list[BatchSlice], native_ids: list[int]) -> Any:
        """The batch of `slices`, one after the other, for sequences of these ids."""
        at = 0
        for piece, native_id in zip(slices, native_ids, strict=True):
            request, count = piece.request, piece.count
            start = request.start + request.offset
            address = self._table_at + self._table.itemsize * native_id
            # Single stores, because array operations are cold code after a pass over the weights.
            if count == 1:
                self._tokens[at] = request.ids[request.offset]
                self._positions[at] = start
                self._wanted[at] = piece.rows
                self._ids[at] = address
            else:
                end = at + count
                self._tokens[at:end] = request.ids[request.offset : request.offset + count]
                np.add(self._range[:count], start, out=self._positions[at:end])
                self._wanted[at : end - piece.rows] = 0
                self._wanted[end - piece.rows : end] = 1
                self._ids[at:end] = address
            at += count
        self._batch.n_tokens = at
        return self._batch


class BatchPolicy:
    """Decides by the last batches what goes into the next. Only who holds the lock may use it."""

    def __init__(self, lock: CombiningLock[BatchRequest]) -> None:
        self._lock = lock
        self._batches = 0
        self._latest: dict[int, int] = {}
        self._seconds = 0.0
        self._gather_from = 0

    def record_batch(self, slices: list[BatchSlice], seconds: float) -> None:
        """Record that a batch of `slices` took so long."""
        self._batches += 1
        for piece in slices:
            self._latest[piece.request.seq_id] = self._batches
        self._seconds = seconds

    def forget(self, seq_id: int) -> None:
        """Forget a sequence that is gone."""
        self._latest.pop(seq_id, None)

    def wait_for_others(self, mine: BatchRequest) -> None:
        """Wait for the others of the last batches, if `mine` is a step.

        Without this, callers split into groups that alternate, each with half-empty batches.
        """
        if len(mine.ids) > _MAX_STEP_TOKENS or self._batches < self._gather_from:
            return
        others = self._others(mine)
        if others and not self._lock.gather(others, _MAX_WAIT_SHARE * self._seconds):
            self._gather_from = self._batches + _BATCHES_WITHOUT_WAITING

    def shares(self, mine: BatchRequest) -> bool:
        """Whether others want tokens too, because they wait or were served a moment ago."""
        if len(mine.ids) <= SHARED_SLICE:
            return True  # it is no longer than a slice anyway
        return self._lock.waiting > 0 or self._others(mine) > 0

    def rests(self, seq_id: int) -> bool:
        """Whether a sequence was not served for a while."""
        return self._latest.get(seq_id, 0) < self._batches - _BATCHES_TO_REST

    def _others(self, mine: BatchRequest) -> int:
        """How many other sequences the last two batches served."""
        since = self._batches - 1
        return sum(
            latest >= since for seq_id, latest in self._latest.items() if seq_id != mine.seq_id
        )
