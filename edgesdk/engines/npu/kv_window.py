"""The KV window of one sequence, in the host's memory: the token at position p in slot p % size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec

Floats = npt.NDArray[np.floating]


class KvWindow:
    """Keys and values of the last tokens of a sequence.

    Attributes:
        slots: F [2 * layers, kv_heads, window, head_size], key and value of each layer in turn.
        end: the position after the last one that was ever written and may still be in a slot.
        reach: how many tokens before a new one its layers look at; None = all.
    """

    def __init__(self, spec: DecoderSpec, shape: StaticShape) -> None:
        self.slots: Floats = np.zeros(
            (2 * spec.layers, spec.kv_heads, shape.window, spec.head_size), shape.dtype
        )
        self.end = 0
        windows = [window for window in spec.windows if window is not None]
        self.reach = max(windows) - 1 if len(windows) == spec.layers else None

    @property
    def size(self) -> int:
        """How many tokens there are slots for."""
        return int(self.slots.shape[2])

    def write(self, start: int, new: Floats) -> None:
        """Put the tokens from position `start` on into their slots; `new` is F [2 * layers,
        kv_heads, tokens, head_size]."""
        count = new.shape[2]
        done = 0
        while done < count:
            slot = (start + done) % self.size
            taken = min(count - done, self.size - slot)
            self.slots[:, :, slot : slot + taken] = new[:, :, done : done + taken]
            done += taken
        self.end = max(self.end, start + count)

    def holds(self, length: int) -> bool:
        """Whether all that a token at position `length` looks at is still there."""
        first = 0 if self.reach is None else max(0, length - self.reach)
        return self.end - self.size <= first

    def copy_from(self, other: KvWindow) -> None:
        """Become equal to another window of the same model."""
        used = min(other.end, self.size)
        self.slots[:, :, :used] = other.slots[:, :, :used]
        self.end = other.end

    def dump(self, length: int) -> Iterator[Floats]:
        """The slots of a sequence of `length` tokens that is not followed by others, layer by
        layer."""
        used = min(length, self.size)
        for part in self.slots:
            yield part[:, :used]

    def load(self, numbers: npt.NDArray[np.uint8], length: int) -> None:
        """The inverse of `dump`; `numbers` is the bytes."""
        used = min(length, self.size)
        parts, heads, _, size = self.slots.shape
        self.slots[:, :, :used] = numbers.view(self.slots.dtype).reshape(parts, heads, used, size)
        self.end = length

    def bytes_of(self, length: int) -> int:
        """How many bytes `dump` gives."""
        parts, heads, _, size = self.slots.shape
        tokens = min(length, self.size)
        return int(parts * heads * tokens * size * self.slots.itemsize)


def fill_mask(
    mask: Floats, start: int, count: int, *, size: int, window: int | None, hidden: float
) -> None:
    """Say what `count` new tokens see, the first of which has position `start`.

    Args:
        mask: F [rows, size + rows]; the tokens have the last rows. Rows before them see only
            themselves, so that what they compute is finite and nobody looks at it.
        size: slots of the KV window.
        window: of the layers, in tokens, the own one included; None = all that came before.
        hidden: the value where a token sees nothing.
    """
    rows = mask.shape[0]
    mask[:] = hidden
    padding = np.arange(rows - count)
    mask[padding, size + padding] = 0
    new = np.arange(start, start + count)
    # The last position before `start` that lies in each slot; below zero, there was none yet.
    old = start - 1 - (start - 1 - np.arange(size)) % size
    reach = start + count if window is None else window
    seen = mask[rows - count :]
    seen[:, :size][(old >= 0) & (new[:, None] - old < reach)] = 0
    distance = new[:, None] - new
    seen[:, size + rows - count :][(distance >= 0) & (distance < reach)] = 0
