"""The contexts of a model that llama.cpp has loaded: the pointers, and the calls on them."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgesdk.engines.gguf.batching import BATCH_ROWS, BATCH_TOKENS
from edgesdk.engines.gguf.library import AbortFlag, LlamaLibrary
from edgesdk.engines.gguf.native_weights import NativeAdapter, NativeWeights
from edgesdk.errors import EngineError
from edgesdk.system.forks import ForkGuard

FIRST_CELLS = 1024
# A second sequence of a context, that holds cells of the first one too. llama.cpp lets new tokens
# overwrite a cell that only one sequence has and that lies behind its window, and looks for such
# cells from the first one on after a state was set.
_KEEPER = 1

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class KvPlace:
    """Where a sequence is computed: a llama_context pointer, and the sequence's id there."""

    context: Any
    native_id: int


class KvCaches(Protocol):
    """The KV caches of all sequences of a model. Only who holds the model's lock may use them."""

    @property
    def cells(self) -> int:
        """The fewest cells that a batch may find."""

    def place(self, seq_id: int, length: int) -> KvPlace:
        """Where a sequence is to be computed up to `length` positions.

        Raises:
            EngineError: there is no memory for it, or llama.cpp does not take back what it gave.
        """

    def make_room(self) -> None:
        """Give a batch that found no free cells more of them.

        Raises:
            EngineError: there is no memory, or no reason for it.
        """

    def truncate(self, seq_id: int, start: int) -> bool:
        """Forget positions from `start` on; False where the cache can only forget them all."""

    def forget(self, seq_id: int) -> None:
        """Forget a sequence that is gone."""

    def copy(self, source: int, target: int) -> None:
        """Let the empty `target` hold what `source` holds."""

    def state(self, seq_id: int) -> Bytes:
        """The KV cache of one sequence in llama.cpp's own layout; not to be written to."""

    def load(self, seq_id: int, state: Bytes, length: int) -> bool:
        """Fill an empty sequence with what `state` returned; False where llama.cpp refuses it.

        Args:
            length: how many tokens `state` is of; only a state of that many is taken.
        """


@dataclass
class _Pointers:
    """What to free; shared with the finalizer, which must not hold the model itself."""

    weights: NativeWeights | None
    adapter: NativeAdapter | None
    contexts: list[Any] = field(default_factory=list)


class NativeModel:
    """Owns the contexts.

    Args:
        weights: the model's, which others may share.
        adapter: what all contexts here are changed by; None for the model alone.

    Attributes:
        windowed: whether layers see a window only, and all of them could still be rewound. What
            llama.cpp gives as the state of one sequence lacks what the window has slid past; that
            of a whole context does not.
    """

    def __init__(
        self,
        library: LlamaLibrary,
        weights: NativeWeights,
        *,
        threads: int,
        adapter: NativeAdapter | None = None,
    ) -> None:
        self.api = library.api
        self.threads = threads
        slides = self.api.llama_model_n_swa(weights.pointer) > 0
        self.windowed = slides and not library.is_recurrent(weights.pointer)
        self.abort = AbortFlag(library)
        self._library = library
        self._pointers = _Pointers(weights, adapter)
        self._free = weakref.finalize(
            self, _free_all, library.api, self._pointers, weights.fork_guard
        )

    @property
    def weights(self) -> NativeWeights:
        """The model's weights.

        Raises:
            EngineError: the engine is closed.
        """
        if self._pointers.weights is None:
            raise EngineError("This engine is closed.", hint="Open the model again.")
        return self._pointers.weights

    @property
    def pointer(self) -> Any:
        """The llama_model pointer; raises as `weights` does."""
        return self.weights.pointer

    def open_context(self, cells: int, *, sequences: int = 1) -> Any:
        """A new llama_context pointer, whose cells all sequences share.

        Raises:
            EngineError: there is no memory for it.
        """
        params = self.api.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = sequences + self.windowed
        params.n_outputs_max = params.n_outputs_max_per_seq = BATCH_ROWS
        params.kv_unified = True
        # A windowed cache that drops what it has slid past could not be rewound.
        params.swa_full = True
        params.n_threads = params.n_threads_batch = self.threads
        params.offload_kqv = params.op_offload = False
        self.abort.install(params, self.pointer)
        context = self.api.llama_init_from_model(self.pointer, params)
        if not context:
            raise self.error(f"llama.cpp could not make a KV cache of {cells} cells")
        self._pointers.contexts.append(context)
        adapter = self._pointers.adapter
        if adapter is not None:
            self._set_adapter(context, adapter)
        return context

    def _set_adapter(self, context: Any, adapter: NativeAdapter) -> None:
        pointers = (self.api.llama_adapter_lora_p_ctypes * 1)(adapter.pointer)
        # 1.0: the file has the scale.
        if self.api.llama_set_adapters_lora(context, pointers, 1, (ctypes.c_float * 1)(1.0)):
            self.free_context(context)
            raise self.error("llama.cpp did not take an adapter")

    def free_context(self, context: Any) -> None:
        """Free one that `open_context` gave."""
        self._pointers.contexts.remove(context)
        self.api.llama_free(context)

    def state(self, place: KvPlace) -> Bytes:
        """The KV cache of one sequence; of a windowed model, that of its whole context.

        Raises:
            EngineError: llama.cpp failed.
        """
        api, context, own = self.api, place.context, place.native_id
        if self.windowed:
            state = np.empty(api.llama_state_get_size(context), np.uint8)
            written = api.llama_state_get_data(context, bytes_pointer(state), state.size)
        else:
            state = np.empty(api.llama_state_seq_get_size(context, own), np.uint8)
            written = api.llama_state_seq_get_data(context, bytes_pointer(state), state.size, own)
        if written != state.size:
            raise self.error("llama.cpp could not copy out a sequence")
        return state

    def set_state(self, place: KvPlace, state: Bytes) -> bool:
        """Fill a sequence; False where llama.cpp refuses it."""
        api, context, own = self.api, place.context, place.native_id
        if not self.windowed:
            return bool(
                api.llama_state_seq_set_data(context, bytes_pointer(state), state.size, own)
            )
        if not api.llama_state_set_data(context, bytes_pointer(state), state.size):
            return False
        api.llama_memory_seq_cp(api.llama_get_memory(context), own, _KEEPER, -1, -1)
        return True

    def length(self, place: KvPlace) -> int:
        """How many positions a sequence has."""
        memory = self.api.llama_get_memory(place.context)
        return int(self.api.llama_memory_seq_pos_max(memory, place.native_id)) + 1

    def truncate(self, place: KvPlace, start: int) -> bool:
        """See `KvCaches.truncate`."""
        memory = self.api.llama_get_memory(place.context)
        if self.windowed:
            self.api.llama_memory_seq_rm(memory, _KEEPER, start, -1)
        return bool(self.api.llama_memory_seq_rm(memory, place.native_id, start, -1))

    def error(self, what: str) -> EngineError:
        """An error with llama.cpp's own words."""
        said = self._library.take_errors()
        return EngineError(f"{what}: {said}." if said else f"{what}.")

    def close(self) -> None:
        """Free the contexts, and the model where nobody else has it; every later call raises
        EngineError."""
        self._free()


def bytes_pointer(array: Bytes) -> Any:
    """`array` as llama.cpp takes it."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _free_all(api: Any, pointers: _Pointers, fork_guard: ForkGuard) -> None:
    if not fork_guard.crossed:
        while pointers.contexts:
            api.llama_free(pointers.contexts.pop())
    # They are freed with the last who holds them.
    pointers.adapter = pointers.weights = None
