"""Decodes one token sequence with the functions of a Core ML package.

Keys and values lie in Core ML's own states, where each token stands at its position. What is
behind the tokens is hidden by a mask, so a rewind is a smaller number. A fork and a file copy the
states, which coremltools reads and writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgesdk.bundle import coreml_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.base import (
    HiddenStates,
    Logits,
    Rows,
    checked_extension,
    checked_ids,
    checked_length,
    chunks,
)
from edgesdk.engines.coreml.functions import CacheState, CoreMlFunctions
from edgesdk.engines.coreml.step_inputs import StepInputs
from edgesdk.engines.saved_state import (
    KvIdentity,
    StateMetadata,
    read_saved_state,
    write_saved_state,
)
from edgesdk.errors import EngineError, RequestError
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.forks import ForkGuard

_CACHES = (coreml_io.KEY_CACHE, coreml_io.VALUE_CACHE)


@dataclass(frozen=True)
class LoadedCoreMlDecoder:
    """What the states of one engine share.

    Attributes:
        shape: the sizes of the package's functions.
    """

    functions: CoreMlFunctions
    spec: DecoderSpec
    shape: StaticShape
    inputs: StepInputs
    context_length: int
    kv_identity: KvIdentity
    fork_guard: ForkGuard = field(default_factory=lambda: ForkGuard("The model", EngineError))


class CoreMlDecodeState:
    """Implements `edgesdk.engines.base.DecodeState`."""

    def __init__(self, loaded: LoadedCoreMlDecoder) -> None:
        loaded.fork_guard.check()
        self._loaded = loaded
        self._tokens: list[int] = []
        self._state: CacheState | None = loaded.functions.new_state()
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
        state, loaded = self._open_state(), self._loaded
        ids, rows = checked_extension(
            tokens,
            logits,
            held=len(self._tokens),
            vocab_size=loaded.spec.vocab_size,
            context_length=loaded.context_length,
        )
        singles = rows if logits == "each" else 0
        held = len(self._tokens)
        total = held + len(ids)
        first = total - rows
        found: list[Logits] = []
        hidden: list[HiddenStates] = []
        # A call that fails or is cancelled has written behind the tokens only.
        whole = chunks(held, total - singles, loaded.shape.prefill_tokens)
        for start, end in (*whole, *chunks(total - singles, total, 1)):
            function, inputs = loaded.inputs.of(ids[start - held : end - held], start, total)
            outputs = loaded.functions.run(function, inputs, state, cancellation)
            wanted = slice(max(first - start, 0), end - start)
            if end > first:
                found.append(np.asarray(outputs[coreml_io.LOGITS], np.float32)[0, wanted])
                hidden.append(np.asarray(outputs[coreml_io.HIDDEN_STATES], np.float32)[0, wanted])
        self._tokens += ids
        self._latest = np.concatenate(hidden)
        return np.concatenate(found)

    def rewind(self, length: int) -> None:
        self._open_state()
        del self._tokens[checked_length(length, held=len(self._tokens)) :]

    def fork(self) -> CoreMlDecodeState:
        state = self._open_state()
        twin = CoreMlDecodeState(self._loaded)
        copy = twin._open_state()
        for cache in _CACHES:
            copy.write_state(cache, np.asarray(state.read_state(cache), np.float32))
        twin._tokens = list(self._tokens)
        return twin

    def save(self, path: Path, metadata: StateMetadata | None = None) -> None:
        state, length = self._open_state(), len(self._tokens)
        payload = [
            np.asarray(state.read_state(cache)[:, :, :length], np.float16) for cache in _CACHES
        ]
        write_saved_state(path, self._loaded.kv_identity, self._tokens, payload, metadata)

    def restore(self, path: Path) -> dict[str, JsonValue]:
        state, loaded = self._open_state(), self._loaded
        tokens, metadata, payload = read_saved_state(path, loaded.kv_identity)
        shape = coreml_io.cache_shape(loaded.spec, len(tokens))
        if payload.size != len(_CACHES) * int(np.prod(shape)) * np.dtype(np.float16).itemsize:
            raise RequestError(
                f"{path} has {payload.size} bytes of KV cache for {len(tokens)} tokens."
            )
        if tokens:
            checked_ids(
                tokens,
                held=0,
                vocab_size=loaded.spec.vocab_size,
                context_length=loaded.context_length,
            )
        room = coreml_io.cache_room(loaded.shape)
        numbers = payload.view(np.float16).reshape(len(_CACHES), *shape)
        for cache, values in zip(_CACHES, numbers, strict=True):
            whole = np.zeros(coreml_io.cache_shape(loaded.spec, room), np.float32)
            whole[:, :, : len(tokens)] = values
            state.write_state(cache, whole)
        self._tokens = tokens
        return metadata

    def close(self) -> None:
        self._state = None
        self._tokens = []

    def _open_state(self) -> CacheState:
        self._loaded.fork_guard.check()
        if self._state is None:
            raise EngineError("This decode state is closed.", hint="Ask the engine for a new one.")
        return self._state
