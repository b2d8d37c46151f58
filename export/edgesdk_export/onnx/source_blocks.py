"""Turn the rows of a stored matrix into blocks.

Blocks that the checkpoint has already are preserved where they fit the format; calibration cannot
improve what loses nothing. Other rows are rounded, and what a second rounding costs is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats import BlockFormat, PackedMatrix
from edgesdk_quantize.formats.blocks import stack_rows, with_zero_points

from edgesdk.bundle.manifest import SourceBlocks
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.onnx.stored_weights import matrix_parts
from edgesdk_export.weights import (
    BlockTensor,
    Decoder,
    Float32,
    LazyTensor,
    require_finite,
    row_ranges,
)


class RequantizationLoss:
    """Sums up the loss of weights that came in blocks, by type and stored format."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], npt.NDArray[np.float64]] = {}

    def add(self, source: str, stored: str, *, squared_error: float, squares: float) -> None:
        """Count one tensor: the sums of its squared differences and of its squared values."""
        sums = self._sums.setdefault((source, stored), np.zeros(3))
        sums += (1, squared_error, squares)

    @property
    def sums(self) -> list[tuple[str, str, list[float]]]:
        """All that was counted, as JSON values."""
        return [(*key, sums.tolist()) for key, sums in self._sums.items()]

    def restore(self, sums: Iterable[tuple[str, str, list[float]]]) -> None:
        """Set the counts to what `sums` was at some time."""
        self._sums = {(source, stored): np.array(values) for source, stored, values in sums}

    def entries(self) -> tuple[SourceBlocks, ...]:
        """In the order of their names."""
        return tuple(
            SourceBlocks(
                source=source,
                stored=stored,
                tensors=int(count),
                # Rounded: the last digits depend on how a processor sums.
                relative_error=float(f"{np.sqrt(error / squares if squares else 0):.3g}"),
            )
            for (source, stored), (count, error, squares) in sorted(self._sums.items())
        )


class MatrixBlocks:
    """One matrix, made of the rows of `parts`, as blocks.

    Attributes:
        has_zero_points: whether zero-points are stored; a part that needs none gets middle ones.
    """

    def __init__(self, parts: Mapping[str, LazyTensor], fmt: BlockFormat) -> None:
        self._parts = parts
        self._fmt = fmt
        self._preserved = {
            name: tensor.preserved_format(fmt) if isinstance(tensor, BlockTensor) else None
            for name, tensor in parts.items()
        }
        if fmt.has_offsets and None in self._preserved.values():
            self._preserved = dict.fromkeys(parts)  # all rows have offsets, or none
        self.has_zero_points = any(
            (preserved or fmt).has_zero_points for preserved in self._preserved.values()
        )

    def chunks(self, loss: RequantizationLoss) -> Iterator[PackedMatrix]:
        """The blocks in order, a few rows at a time.

        Raises:
            ExportError: a weight is NaN or infinite.
        """
        for name, tensor in self._parts.items():
            preserved = self._preserved[name]
            if not isinstance(tensor, BlockTensor):
                found = self._rounded(name, tensor)
            elif preserved is None:
                found = self._rounded_again(name, tensor, loss)
            else:
                loss.add(tensor.dtype, preserved.name, squared_error=0, squares=0)
                found = _preserved(name, tensor, preserved)
            for packed in found:
                yield with_zero_points(packed, self._fmt.bits) if self.has_zero_points else packed

    def _rounded(self, name: str, tensor: LazyTensor) -> Iterator[PackedMatrix]:
        for start, stop in row_ranges(tensor):
            yield self._fmt.quantize(
                require_finite(name, tensor.rows(start, stop), first_row=start)
            )

    def _rounded_again(
        self, name: str, tensor: BlockTensor, loss: RequantizationLoss
    ) -> Iterator[PackedMatrix]:
        squared_error = squares = 0.0
        for start, stop in row_ranges(tensor):
            values = require_finite(name, tensor.rows(start, stop), first_row=start)
            reads_steps = self._fmt.reads_steps
            steps = tensor.steps(self._fmt.block, start, stop) if reads_steps else None
            packed = self._fmt.requantize(values, steps)
            error = self._fmt.dequantize(packed, columns=values.shape[1]) - values
            squared_error += _squares(error)
            squares += _squares(values)
            yield packed
        loss.add(tensor.dtype, self._fmt.name, squared_error=squared_error, squares=squares)


def preserved_matrices(
    decoder: Decoder, matrix_formats: Mapping[str, BlockFormat]
) -> frozenset[str]:
    """The stored matrices ("layers.3.qkv") in `matrix_formats` whose blocks can be preserved."""
    return frozenset(
        name for name, fmt in matrix_formats.items() if _preserved_formats(decoder, name, fmt)
    )


def preserved_blocks(decoder: Decoder, matrix: str, fmt: BlockFormat) -> PackedMatrix | None:
    """A stored matrix in the checkpoint's own blocks; None where they do not fit `fmt`.

    Raises:
        ExportError: a scale is NaN or infinite.
    """
    pieces = []
    for name, preserved in _preserved_formats(decoder, matrix, fmt).items():
        tensor = decoder.weights[name]
        assert isinstance(tensor, BlockTensor)
        piece = tensor.blocks(preserved, 0, tensor.shape[0])
        require_finite(f"{name}, scales", piece.scales)
        pieces.append(piece)
    if not pieces:
        return None
    return stack_rows(pieces, fmt.bits)


def _preserved(name: str, tensor: BlockTensor, fmt: BlockFormat) -> Iterator[PackedMatrix]:
    for start, stop in row_ranges(tensor):
        packed = tensor.blocks(fmt, start, stop)
        require_finite(f"{name}, scales", packed.scales, first_row=start)
        yield packed


def _squares(values: Float32) -> float:
    return float(np.square(values).sum(dtype=np.float64))


def _preserved_formats(decoder: Decoder, matrix: str, fmt: BlockFormat) -> dict[str, BlockFormat]:
    """The preserved format of each weight of a stored matrix; empty where one has none."""
    found = {}
    for name in _weights(decoder.spec, matrix):
        tensor = decoder.weights[name]
        preserved = tensor.preserved_format(fmt) if isinstance(tensor, BlockTensor) else None
        if preserved is None:
            return {}
        found[name] = preserved
    return found


def _weights(spec: DecoderSpec, matrix: str) -> tuple[str, ...]:
    return tuple(f"{part}.weight" for part in matrix_parts(spec)[matrix])
