"""Map canonical weights to the tensors of a checkpoint, and transform them while they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats import BlockFormat, PackedMatrix
from edgesdk_quantize.formats.blocks import UInt8, take_rows

from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.weights import BlockTensor, Float32, LazyTensor, PackedTensor


@dataclass(frozen=True)
class WeightSource:
    """Where a canonical weight comes from.

    Attributes:
        tensor: its name in the checkpoint.
        start, stop: its rows in that tensor, where several weights are fused into one; None =
            all of them.
        interleaved_head: head size of query or key rows that stand in the interleaved rope order
            (llama.cpp's "llama" architecture) and must be put into the half-split one.
        add: what to add to each value (gemma's safetensors store `gain - 1`).
    """

    tensor: str
    start: int | None = None
    stop: int | None = None
    interleaved_head: int | None = None
    add: float = 0.0


@dataclass(frozen=True)
class CheckpointMapping:
    """A checkpoint, understood.

    Attributes:
        sources: by canonical name; exactly the names of `canonical_shapes(spec)`.
        head: the tensor that may repeat the embedding matrix though the head is tied; a
            checkpoint whose two differ is refused.
        settled: tensors that are no weights and have been taken into the spec, or that follow
            from it (rotary frequencies). Names, or patterns with `*`.
    """

    spec: DecoderSpec
    sources: Mapping[str, WeightSource]
    head: str
    settled: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightView:
    """A canonical weight over a tensor of the checkpoint; a `LazyTensor`."""

    tensor: LazyTensor
    source: WeightSource

    @property
    def shape(self) -> tuple[int, ...]:
        start = self.source.start or 0
        stop = self.tensor.shape[0] if self.source.stop is None else self.source.stop
        return (stop - start, *self.tensor.shape[1:])

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    def rows(self, start: int, stop: int) -> Float32:
        """Rows [start, stop) of the canonical weight."""
        first, last, order = self._stored_rows(start, stop)
        values = self.tensor.rows(first, last)[order]
        return values if self.source.add == 0 else values + np.float32(self.source.add)

    def _stored_rows(self, start: int, stop: int) -> tuple[int, int, slice | npt.NDArray[np.int64]]:
        """Which rows of the tensor to read for rows [start, stop), and which of those, in order."""
        size = self.source.interleaved_head
        if size is None:
            offset = self.source.start or 0
            return offset + start, offset + stop, slice(None)
        # Whole heads are read, since the rows of one head are shuffled among themselves: row
        # `2 i + s` of a head in the interleaved order is row `s * size / 2 + i` in the other.
        first, last = start // size * size, -(-stop // size) * size
        order = np.arange(last - first).reshape(-1, size // 2, 2).swapaxes(1, 2).reshape(-1)
        return first, last, order[start - first : stop - first]


@dataclass(frozen=True)
class BlockWeightView(WeightView):
    """A canonical matrix over one that is stored in blocks; a `BlockTensor`."""

    tensor: BlockTensor

    def preserved_format(self, fmt: BlockFormat) -> BlockFormat | None:
        """See `BlockTensor.preserved_format`."""
        return self.tensor.preserved_format(fmt)

    def blocks(self, fmt: BlockFormat, start: int, stop: int) -> PackedMatrix:
        """See `BlockTensor.blocks`."""
        first, last, order = self._stored_rows(start, stop)
        found = self.tensor.blocks(fmt, first, last)
        return take_rows(found, order)

    def steps(self, block: int, start: int, stop: int) -> Float32 | None:
        """See `BlockTensor.steps`."""
        first, last, order = self._stored_rows(start, stop)
        found = self.tensor.steps(block, first, last)
        return None if found is None else found[order]


@dataclass(frozen=True)
class PackedWeightView(BlockWeightView):
    """A canonical matrix over one that is stored in blocks of ggml's; a `PackedTensor` too."""

    packed_tensor: PackedTensor

    def packed(self, start: int, stop: int) -> UInt8:
        """See `PackedTensor.packed`."""
        first, last, order = self._stored_rows(start, stop)
        return self.packed_tensor.packed(first, last)[order]


def weight_view(tensor: LazyTensor, source: WeightSource) -> WeightView:
    """A canonical weight, with blocks where the tensor has them and its values are unchanged."""
    if isinstance(tensor, BlockTensor) and source.add == 0:
        if isinstance(tensor, PackedTensor):
            return PackedWeightView(tensor, source, tensor)
        return BlockWeightView(tensor, source)
    return WeightView(tensor, source)
