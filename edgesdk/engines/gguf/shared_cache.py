"""One KV cache for all sequences: their steps can go into one batch, and forks cost nothing.

The cache starts small; when a batch finds no room, a context of twice the cells takes over its
state. The numbers of a sequence depend in their last bits on who else is in the cache; see
`edgesdk.engines.gguf.separate_caches`.
"""

from __future__ import annotations

import numpy as np

from edgesdk.engines.gguf import native_model
from edgesdk.engines.gguf.native_model import Bytes, KvPlace, NativeModel, bytes_pointer

MAX_SEQUENCES = 64


class SharedCache:
    """Implements `KvCaches`.

    Args:
        context_length: most tokens that one sequence may hold.
    """

    def __init__(self, model: NativeModel, *, context_length: int) -> None:
        self._model = model
        self._cells = native_model.FIRST_CELLS
        self._max_cells = MAX_SEQUENCES * max(context_length, self._cells)
        self._context = model.open_context(self._cells, sequences=MAX_SEQUENCES)

    @property
    def cells(self) -> int:
        return self._cells

    def place(self, seq_id: int, length: int) -> KvPlace:
        _ = self._model.pointer  # raises where the engine is closed
        return KvPlace(self._context, seq_id)

    def make_room(self) -> None:
        model, cells = self._model, 2 * self._cells
        if cells > self._max_cells:
            raise model.error(f"llama.cpp found no room in {self._cells} KV cache cells")
        size = model.api.llama_state_get_size(self._context)
        state = np.empty(size, np.uint8)
        model.api.llama_state_get_data(self._context, bytes_pointer(state), size)
        new = model.open_context(cells, sequences=MAX_SEQUENCES)
        if model.api.llama_state_set_data(new, bytes_pointer(state), size) == 0:
            model.free_context(new)
            raise model.error(f"llama.cpp could not move its KV cache to {cells} cells")
        model.free_context(self._context)
        self._context, self._cells = new, cells

    def truncate(self, seq_id: int, start: int) -> bool:
        return self._model.truncate(self.place(seq_id, start), start)

    def forget(self, seq_id: int) -> None:
        self.truncate(seq_id, 0)

    def copy(self, source: int, target: int) -> None:
        memory = self._model.api.llama_get_memory(self.place(source, 0).context)
        self._model.api.llama_memory_seq_cp(memory, source, target, -1, -1)

    def state(self, seq_id: int) -> Bytes:
        return self._model.state(self.place(seq_id, 0))

    def load(self, seq_id: int, state: Bytes, length: int) -> bool:
        place = self.place(seq_id, length)
        if not self._model.set_state(place, state):
            # Twice the cells and more always leave a free stretch for all of it.
            enough = self._cells + length
            while self._cells < enough:
                self.make_room()
            place = self.place(seq_id, length)
            if not self._model.set_state(place, state):
                return False
        return self._model.length(place) == length
