"""Decodes one token sequence on a GGUF model: an id in the shared llama.cpp context."""

from __future__ import annotations

from pathlib import Path

import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.engines.base import Logits, Rows, checked_extension, checked_ids, checked_length
from edgesdk.engines.gguf.batching import LogitsBuffer
from edgesdk.engines.gguf.context import LlamaContext
from edgesdk.engines.saved_state import (
    KvIdentity,
    StateMetadata,
    read_saved_state,
    write_saved_state,
)
from edgesdk.errors import EngineError, RequestError
from edgesdk.system.cancellation import CancellationToken


class GgufDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`."""

    def __init__(
        self, context: LlamaContext, *, context_length: int, kv_identity: KvIdentity
    ) -> None:
        self._id: int | None = None
        self._context = context
        self._context_length = context_length
        self._kv_identity = kv_identity
        self._tokens: list[int] = []
        # How many positions the KV cache holds; those past the tokens are forgotten when it is
        # used next. A recurrent model computes what stays again then, and not at each rewind.
        self._filled = 0
        self._logits = LogitsBuffer(0, context.vocab_size)
        self._id = context.acquire()

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    @property
    def hidden_states(self) -> None:
        """llama.cpp gives them only beside those of the whole prompt."""
        return None

    def extend(
        self,
        tokens: npt.ArrayLike,
        *,
        logits: Rows = "last",
        cancellation: CancellationToken | None = None,
    ) -> Logits:
        seq_id = self._open_id()
        held = len(self._tokens)
        ids, rows = checked_extension(
            tokens,
            logits,
            held=held,
            vocab_size=self._context.vocab_size,
            context_length=self._context_length,
        )
        self._settle(seq_id)
        if rows != self._logits.rows:
            self._logits = LogitsBuffer(rows, self._context.vocab_size)
        try:
            self._context.decode(
                seq_id, ids, held, self._logits, cancellation, verifies=logits == "each"
            )
        except BaseException:
            self._truncate(seq_id, held)
            raise
        self._tokens += ids
        self._filled = len(self._tokens)
        return self._logits.array

    def rewind(self, length: int) -> None:
        self._open_id()
        del self._tokens[checked_length(length, held=len(self._tokens)) :]

    def fork(self) -> GgufDecodeState:
        seq_id = self._open_id()
        self._settle(seq_id)
        twin = GgufDecodeState(
            self._context, context_length=self._context_length, kv_identity=self._kv_identity
        )
        if self._tokens:
            self._context.copy(seq_id, twin._open_id())
        twin._tokens = list(self._tokens)
        twin._filled = len(self._tokens)
        return twin

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        seq_id = self._open_id()
        self._settle(seq_id)
        state = self._context.state(seq_id)
        write_saved_state(path, self._kv_identity, self._tokens, [state], metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        old = self._open_id()
        tokens, metadata, state = read_saved_state(path, self._kv_identity)
        if tokens:
            checked_ids(
                tokens,
                held=0,
                vocab_size=self._context.vocab_size,
                context_length=self._context_length,
            )
        # Into a new id first: a state that llama.cpp refuses must not cost the old one.
        new = self._context.acquire()
        try:
            if tokens and not self._context.load_state(new, state, len(tokens)):
                raise RequestError(f"{path} holds a KV cache that llama.cpp does not accept.")
        except BaseException:
            self._context.release(new)
            raise
        self._id = new
        self._tokens = tokens
        self._filled = len(tokens)
        self._context.release(old)
        return metadata

    def close(self) -> None:
        if self._id is not None:
            self._context.release(self._id)
            self._id = None
            self._tokens = []

    def __del__(self) -> None:
        self.close()

    def _settle(self, seq_id: int) -> None:
        """Let the KV cache hold the tokens, and nothing else."""
        if self._filled > len(self._tokens):
            self._truncate(seq_id, len(self._tokens))

    def _truncate(self, seq_id: int, length: int) -> None:
        self._filled = length
        if self._context.remove(seq_id, length):
            return
        # A recurrent state has no past to go back to, so what stays is computed again.
        self._context.remove(seq_id, 0)
        if length:
            scratch = LogitsBuffer(1, self._context.vocab_size)
            self._context.decode(seq_id, self._tokens[:length], 0, scratch)

    def _open_id(self) -> int:
        self._context.fork_guard.check()
        if self._id is None:
            raise EngineError("This decode state is closed.", hint="Ask the engine for a new one.")
        return self._id
