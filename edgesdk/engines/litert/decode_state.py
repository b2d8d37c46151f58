"""Decodes one token sequence with LiteRT's interpreter.

The caches are arrays that the interpreter copies in and gives back as new ones, so they are values:
a fork shares them, and a rewind is a smaller number. What lies behind the tokens is never seen.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.bundle import litert_io
from edgesdk.engines.base import (
    HiddenStates,
    Logits,
    Rows,
    checked_extension,
    checked_ids,
    checked_length,
    chunks,
)
from edgesdk.engines.saved_state import (
    KvIdentity,
    StateMetadata,
    read_saved_state,
    write_saved_state,
)
from edgesdk.errors import EngineError, RequestError
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.forks import ForkGuard

Array = npt.NDArray[Any]
Caches = Mapping[str, Array]

# A prefill takes as long for one token as for all that fit in it, about as long as so many calls
# for one token.
_SINGLE_STEPS = 8


@dataclass(frozen=True)
class LoadedTflite:
    """What the states of one engine share.

    Attributes:
        signatures: what runs each signature of `edgesdk.bundle.litert_io`.
        empty: the caches of no token; nobody writes into them.
        prefill_tokens: tokens of one call of "prefill" and "head".
        alike: whether a token gets the same numbers, bit for bit, alone and among others.
    """

    signatures: Mapping[str, Any]
    empty: Caches
    prefill_tokens: int
    alike: bool
    vocab_size: int
    context_length: int
    kv_identity: KvIdentity
    # An interpreter runs one call at a time.
    lock: threading.Lock = field(default_factory=threading.Lock)
    fork_guard: ForkGuard = field(default_factory=lambda: ForkGuard("The model", EngineError))

    def run(self, name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a signature; what it gives are copies.

        Raises:
            EngineError: LiteRT failed, or this process was forked after the model was loaded.
        """
        self.fork_guard.check()
        try:
            with self.lock:
                found: dict[str, Array] = self.signatures[name](**inputs)
        # Its exceptions have no common base.
        except Exception as error:
            raise EngineError(f"LiteRT failed in {name!r}: {error}") from error
        return found


class _Rows(NamedTuple):
    """Logits [n, vocab] and the states behind them [n, hidden]."""

    logits: Logits
    hidden: HiddenStates


class LitertDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`.

    Prompts are cut at multiples of what "prefill" takes, wherever they begin: the tokens before are
    computed again with them, so that a call always has places for all that it writes.
    """

    def __init__(self, loaded: LoadedTflite) -> None:
        self._loaded = loaded
        self._tokens: list[int] = []
        self._caches: Caches | None = loaded.empty
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
        caches = self._open_caches()
        loaded, held = self._loaded, len(self._tokens)
        ids, rows = checked_extension(
            tokens,
            logits,
            held=held,
            vocab_size=loaded.vocab_size,
            context_length=loaded.context_length,
        )
        wanted_from = held + len(ids) - rows
        run = _Extension(loaded, self._tokens + ids, caches, cancellation)
        if loaded.alike:
            # The last token goes through the signature that gives logits.
            run.compute(held, len(run.tokens) - 1, wanted_from=wanted_from)
            run.step(len(run.tokens) - 1)
        elif logits == "each" or len(ids) == 1:
            for at in range(held, len(run.tokens)):
                run.step(at, wanted=at >= wanted_from)
        else:
            # What is in a prefill that is made again must have been in one the first time.
            run.prefill(held, len(run.tokens), wanted_from=wanted_from)
        self._caches = run.caches
        self._tokens += ids
        self._latest = np.concatenate([part.hidden for part in run.found])
        return np.concatenate([part.logits for part in run.found])

    def rewind(self, length: int) -> None:
        self._open_caches()
        del self._tokens[checked_length(length, held=len(self._tokens)) :]

    def fork(self) -> LitertDecodeState:
        caches = self._open_caches()
        twin = LitertDecodeState(self._loaded)
        twin._tokens = list(self._tokens)
        twin._caches = caches
        return twin

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        length = len(self._tokens)
        payload = [cache[:, :, :length] for cache in self._open_caches().values()]
        write_saved_state(path, self._loaded.kv_identity, self._tokens, payload, metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        self._open_caches()
        loaded = self._loaded
        tokens, metadata, payload = read_saved_state(path, loaded.kv_identity)
        length = len(tokens)
        shapes = {
            name: (*cache.shape[:2], length, cache.shape[3]) for name, cache in loaded.empty.items()
        }
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        if payload.size != sum(sizes) * np.dtype(np.float32).itemsize:
            raise RequestError(f"{path} has {payload.size} bytes of KV cache for {length} tokens.")
        if tokens:
            checked_ids(
                tokens,
                held=0,
                vocab_size=loaded.vocab_size,
                context_length=loaded.context_length,
            )
        parts = np.split(payload.view(np.float32), np.cumsum(sizes)[:-1])
        caches = {name: cache.copy() for name, cache in loaded.empty.items()}
        for part, (name, shape) in zip(parts, shapes.items(), strict=True):
            caches[name][:, :, :length] = part.reshape(shape)
        self._caches = caches
        self._tokens = tokens
        return metadata

    def close(self) -> None:
        self._caches = None
        self._tokens = []

    def _open_caches(self) -> Caches:
        self._loaded.fork_guard.check()
        if self._caches is None:
            raise EngineError("This decode state is closed.", hint="Ask the engine for a new one.")
        return self._caches


class _Extension:
    """One call of `extend`: the caches and the rows that it has so far.

    Attributes:
        tokens: all of the sequence, those that are being appended too.
    """

    def __init__(
        self,
        loaded: LoadedTflite,
        tokens: list[int],
        caches: Caches,
        cancellation: CancellationToken | None,
    ) -> None:
        self.tokens = tokens
        self.caches = caches
        self.found: list[_Rows] = []
        self._loaded = loaded
        self._cancellation = cancellation

    def compute(self, start: int, stop: int, *, wanted_from: int) -> None:
        """The tokens from `start` to `stop`, the quickest way, and the rows of those from
        `wanted_from` on."""
        for first, end in chunks(start, stop, self._loaded.prefill_tokens):
            if end - first > _SINGLE_STEPS:
                self._prefill(first, end, max(first, wanted_from))
            else:
                for at in range(first, end):
                    self.step(at, wanted=at >= wanted_from)

    def prefill(self, start: int, stop: int, *, wanted_from: int) -> None:
        """The same, in calls of "prefill" only."""
        for first, end in chunks(start, stop, self._loaded.prefill_tokens):
            self._prefill(first, end, max(first, wanted_from))

    def step(self, at: int, *, wanted: bool = True) -> None:
        """One token."""
        found = self._run(litert_io.DECODE, [self.tokens[at]], at)
        if wanted:
            self.found.append(_Rows(found[litert_io.LOGITS][0], found[litert_io.HIDDEN_STATES][0]))

    def _prefill(self, start: int, end: int, wanted_from: int) -> None:
        size = self._loaded.prefill_tokens
        first = start // size * size
        states = self._run(litert_io.PREFILL, self.tokens[first:end], first)[
            litert_io.HIDDEN_STATES
        ]
        if end <= wanted_from:
            return
        logits = self._loaded.run(litert_io.HEAD, {litert_io.HIDDEN_STATES: states})[
            litert_io.LOGITS
        ]
        rows = slice(wanted_from - first, end - first)
        self.found.append(_Rows(logits[0, rows], states[0, rows]))

    def _run(self, name: str, tokens: list[int], start: int) -> dict[str, Array]:
        if self._cancellation is not None:
            self._cancellation.raise_if_cancelled()
        count = self._loaded.prefill_tokens if name == litert_io.PREFILL else 1
        ids = np.zeros((1, count), np.int32)
        ids[0, : len(tokens)] = tokens
        positions = np.arange(start, start + count, dtype=np.int32)
        inputs = {litert_io.TOKENS: ids, litert_io.POSITIONS: positions, **self.caches}
        found = self._loaded.run(name, inputs)
        self.caches = {cache: found[cache] for cache in self.caches}
        return found
