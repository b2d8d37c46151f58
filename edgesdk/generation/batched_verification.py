"""Measures whether an engine computes tokens together to the same logits as one by one.

Kernels may add in another order for one row than for several. The difference is in the last bit,
but 8-bit activations blow it up, and then a near tie can fall the other way: greedy answers would
change. Nothing that an engine says about itself settles this (it depends on kernels, threads and
the length of the text), so it is measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from edgesdk.engines.base import DecodeState, Logits
from edgesdk.errors import EngineError

# As many as are ever verified at once.
MAX_VERIFIED = 8
# A different hidden state changes every logit, so some of them tell.
_STRIDE = 61
# Kernels change with the length of the cache; llama.cpp pads that to this.
_SPAN = 256


class BatchedVerification:
    """What is known of one engine. Shared by its answers, on several threads."""

    def __init__(self) -> None:
        self._refuted = False
        self._spans: frozenset[int] = frozenset()

    @property
    def refuted(self) -> bool:
        """Whether logits were seen to differ."""
        return self._refuted

    def verdict(self, length: int) -> bool | None:
        """Whether logits agree in a text of `length` tokens; None while that was not measured.

        One refutation counts for every length: keys and values of an earlier span that differ
        make all later logits differ.
        """
        if self._refuted:
            return False
        return True if length // _SPAN in self._spans else None

    def allows(self, length: int) -> bool:
        """Whether `MAX_VERIFIED` tokens behind `length` are known to agree. None do across a border
        of spans: some models and engines compute what lies beyond it in another way."""
        border = length // _SPAN != (length + MAX_VERIFIED) // _SPAN
        return self.verdict(length) is True and not border

    def measure(self, state: DecodeState, tokens: Sequence[int], recent: RecentLogits) -> None:
        """Compute the tokens of `recent`, the last that `state` holds, once more, together.

        Where there is no room for a fork, nothing is measured.

        Args:
            state: left as it is; a fork does the work.
            tokens: what it holds.
        """
        try:
            fork = state.fork()
        except (EngineError, MemoryError):
            return
        try:
            agree = self._agree(fork, tokens, recent)
        except (EngineError, MemoryError):
            return
        finally:
            fork.close()
        if agree:
            self._spans |= {len(tokens) // _SPAN}
        else:
            self._refuted = True

    def _agree(self, fork: DecodeState, tokens: Sequence[int], recent: RecentLogits) -> bool:
        fork.rewind(len(tokens) - MAX_VERIFIED)
        # The first fork still has, out of sight, the keys and values that are to be computed.
        clean = fork.fork()
        try:
            together = clean.extend(list(tokens[-MAX_VERIFIED:]), logits="each")
            return bool(np.array_equal(together[:, ::_STRIDE], recent.stacked()))
        finally:
            clean.close()


class RecentLogits:
    """Some logits of the last tokens that were computed one by one, without a gap."""

    def __init__(self) -> None:
        self._rows: deque[Logits] = deque(maxlen=MAX_VERIFIED)

    @property
    def full(self) -> bool:
        """Whether there are enough for a measurement."""
        return len(self._rows) == MAX_VERIFIED

    def add(self, row: Logits) -> None:
        """Keep a part of `row`, float32 [vocab]."""
        self._rows.append(row[::_STRIDE].copy())

    def clear(self) -> None:
        """A gap: what comes next was not computed one by one."""
        self._rows.clear()

    def stacked(self) -> Logits:
        """float32 [MAX_VERIFIED, part of vocab]."""
        return np.stack(self._rows)
