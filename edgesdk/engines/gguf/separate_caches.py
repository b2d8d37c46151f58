"""A KV cache for each sequence, so that its numbers are its own.

llama.cpp's attention adds up in the order of the cells, in blocks of 64 that start at the first
cell, and splits the cells that are in use among threads (ggml-cpu/ops.cpp). In a cache that
sequences share, all three depend on who else is there and on what was there before. Here a sequence
is computed in a context of its own, where cell i holds position i.

There are as many contexts as sequences are computed at once. A sequence that has none, because it
is new or waits for its next turn, is parked: its KV cache is an array of just the size it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgesdk.engines.gguf import native_model
from edgesdk.engines.gguf.native_model import Bytes, KvPlace, NativeModel

# Each has buffers of its own besides its cells. Where more sequences take turns, they are parked
# and come back, which costs two copies of a KV cache.
MAX_CONTEXTS = 4


@dataclass
class _Slot:
    """A context; `cells` is how many positions it has room for."""

    context: Any
    cells: int


class SeparateCaches:
    """Implements `KvCaches`.

    Args:
        rests: whether a sequence may be parked rather than that there is one context more.
    """

    def __init__(self, model: NativeModel, *, rests: Callable[[int], bool]) -> None:
        self._model = model
        self._rests = rests
        # The one that was computed last is the last in the dict.
        self._active: dict[int, _Slot] = {}
        self._idle = [self._open(native_model.FIRST_CELLS)]
        self._parked: dict[int, Bytes] = {}

    @property
    def cells(self) -> int:
        slots = [*self._active.values(), *self._idle]
        return min(slot.cells for slot in slots)

    def place(self, seq_id: int, length: int) -> KvPlace:
        _ = self._model.pointer  # raises where the engine is closed
        if seq_id not in self._active:
            self._active[seq_id] = self._empty_slot()
            parked = self._parked.get(seq_id)
            if parked is not None:
                self._fit(seq_id, length)
                if not self._model.set_state(self._place(seq_id), parked):
                    self._drop(seq_id)
                    raise self._model.error("llama.cpp did not take back a KV cache")
                del self._parked[seq_id]
        self._active[seq_id] = self._active.pop(seq_id)
        self._fit(seq_id, length)
        return self._place(seq_id)

    def make_room(self) -> None:
        raise self._model.error("llama.cpp found no room in a KV cache that has some")

    def truncate(self, seq_id: int, start: int) -> bool:
        if start == 0:
            self._parked.pop(seq_id, None)
        if seq_id in self._parked:
            self.place(seq_id, start)
        return seq_id not in self._active or self._model.truncate(self._place(seq_id), start)

    def forget(self, seq_id: int) -> None:
        self._parked.pop(seq_id, None)
        if seq_id in self._active:
            self._drop(seq_id)

    def copy(self, source: int, target: int) -> None:
        self._parked[target] = self.state(source)

    def state(self, seq_id: int) -> Bytes:
        if seq_id in self._parked:
            return self._parked[seq_id]
        return self._model.state(self.place(seq_id, 0))

    def load(self, seq_id: int, state: Bytes, length: int) -> bool:
        place = self.place(seq_id, length)
        return self._model.set_state(place, state) and self._model.length(place) == length

    def _place(self, seq_id: int) -> KvPlace:
        return KvPlace(self._active[seq_id].context, 0)

    def _empty_slot(self) -> _Slot:
        if not self._idle:
            oldest = next(iter(self._active))
            if len(self._active) < MAX_CONTEXTS and not self._rests(oldest):
                return self._open(native_model.FIRST_CELLS)
            self._parked[oldest] = self._model.state(self._place(oldest))
            self._drop(oldest)
        return self._idle.pop()

    def _drop(self, seq_id: int) -> None:
        """Make the context of a sequence idle."""
        self._model.truncate(self._place(seq_id), 0)
        self._idle.append(self._active.pop(seq_id))

    def _fit(self, seq_id: int, length: int) -> None:
        """Give a sequence a context with room for `length` positions."""
        small = self._active[seq_id]
        cells = small.cells
        while cells < length:
            cells *= 2
        if cells == small.cells:
            return
        large = self._open(cells)
        place = KvPlace(small.context, 0)
        if self._model.length(place) and not self._model.set_state(
            KvPlace(large.context, 0), self._model.state(place)
        ):
            self._model.free_context(large.context)
            raise self._model.error(f"llama.cpp could not move its KV cache to {cells} cells")
        self._active[seq_id] = large
        self._model.free_context(small.context)

    def _open(self, cells: int) -> _Slot:
        return _Slot(self._model.open_context(cells), cells)
