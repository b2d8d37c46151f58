"""Read and write the blocks that a model was trained in, beside its checkpoint.

A student that was trained through a number format has weights on grids, and the grids were trained
too. Rounding such weights again would find other grids. So the blocks themselves lie beside
`model.safetensors`, which holds their values for everything that knows floats only. Names are those
of the checkpoint's tensors, with the part behind it; the metadata says each one's format:

    M|codes  M|scales  or  M|scale_codes  M|scale_units  M|zero_points  M|offsets|codes ...
    M|rows                   of ggml's types: rows as a GGUF stores them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats import BlockFormat, CodedScales, PackedMatrix, preserved_blocks
from edgesdk_quantize.formats.blocks import ScaleCodes, UInt8
from edgesdk_quantize.formats.ggml import GgmlFormat
from edgesdk_quantize.formats.registry import format_named

from edgesdk.errors import DamagedCheckpoint, RequestError
from edgesdk_export.checkpoint.safetensors_reader import (
    SafetensorsTensor,
    read_metadata,
    read_safetensors,
)
from edgesdk_export.weights import Float32, LazyTensor

TRAINED_BLOCKS_FILE = "trained_blocks.safetensors"

StoredFormat: TypeAlias = BlockFormat | GgmlFormat
Parts: TypeAlias = Mapping[str, SafetensorsTensor]


@dataclass(frozen=True)
class TrainedMatrix:
    """A matrix as it was trained.

    Attributes:
        fmt: its format.
        stored: what `fmt.quantize` would give: blocks, or ggml's rows.
    """

    fmt: StoredFormat
    stored: PackedMatrix | UInt8

    def values(self, columns: int) -> Float32:
        """The float32 [N, columns] that it stands for."""
        if isinstance(self.fmt, GgmlFormat):
            assert isinstance(self.stored, np.ndarray)
            return self.fmt.dequantize(self.stored)
        assert isinstance(self.stored, PackedMatrix)
        return self.fmt.dequantize(self.stored, columns=columns)


def write_trained_blocks(folder: Path, matrices: Mapping[str, TrainedMatrix]) -> None:
    """Write the file, by the names of the checkpoint's tensors."""
    from safetensors.numpy import save_file

    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, matrix in matrices.items():
        if isinstance(matrix.stored, PackedMatrix):
            arrays |= {f"{name}|{part}": array for part, array in _arrays(matrix.stored).items()}
        else:
            arrays[f"{name}|rows"] = matrix.stored
    formats = {name: _format_key(matrix.fmt) for name, matrix in matrices.items()}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, folder / TRAINED_BLOCKS_FILE, {"formats": json.dumps(formats)})


def with_trained_blocks(folder: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint, with the blocks that its folder has for them.

    Raises:
        DamagedCheckpoint: the file is cut, or is of another model.
    """
    path = folder / TRAINED_BLOCKS_FILE
    if not path.is_file():
        return dict(tensors)
    stored = read_safetensors(path)
    found = dict(tensors)
    for name, key in _formats(path).items():
        parts = {
            part.removeprefix(f"{name}|"): tensor
            for part, tensor in stored.items()
            if part.startswith(f"{name}|")
        }
        tensor = tensors.get(name)
        if tensor is None or not parts:
            raise _not_of_this_model(path, name)
        fmt = _format_of(key, path)
        kind = _TrainedRows if isinstance(fmt, GgmlFormat) else _TrainedBlocks
        found[name] = kind(tensor, path, name, fmt, parts)
    return found


@dataclass(frozen=True)
class _TrainedTensor:
    """A matrix with the blocks that it was trained in."""

    tensor: LazyTensor
    path: Path
    name: str
    fmt: StoredFormat
    parts: Parts

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """The format's name."""
        return self.fmt.name

    def rows(self, start: int, stop: int) -> Float32:
        """See `LazyTensor.rows`."""
        return self.tensor.rows(start, stop)

    def steps(self, block: int, start: int, stop: int) -> Float32 | None:
        """See `BlockTensor.steps`: not known where the blocks themselves do not fit."""
        return None

    def _checked(self, stored: PackedMatrix | UInt8, start: int, stop: int) -> None:
        """Raise where the checkpoint's values are others by now."""
        values = TrainedMatrix(self.fmt, stored).values(self.shape[1])
        if not np.array_equal(values, self.rows(start, stop)):
            raise _not_of_this_model(self.path, self.name)


@dataclass(frozen=True)
class _TrainedBlocks(_TrainedTensor):
    """A `BlockTensor` in one of our own formats."""

    def preserved_format(self, fmt: BlockFormat) -> BlockFormat | None:
        """See `BlockTensor.preserved_format`."""
        own = self.fmt
        assert isinstance(own, BlockFormat)
        fits = (own.bits, own.block, own.has_offsets) == (fmt.bits, fmt.block, fmt.has_offsets)
        return own if fits else None

    def blocks(self, fmt: BlockFormat, start: int, stop: int) -> PackedMatrix:
        """See `BlockTensor.blocks`."""
        found = _packed(self.parts, start, stop)
        self._checked(found, start, stop)
        return found


@dataclass(frozen=True)
class _TrainedRows(_TrainedTensor):
    """A `BlockTensor` and a `PackedTensor` in one of ggml's types."""

    def preserved_format(self, fmt: BlockFormat) -> BlockFormat | None:
        """See `BlockTensor.preserved_format`."""
        return preserved_blocks.preserved_format(self.dtype, fmt)

    def blocks(self, fmt: BlockFormat, start: int, stop: int) -> PackedMatrix:
        """See `BlockTensor.blocks`."""
        return preserved_blocks.preserve_blocks(self.dtype, self.packed(start, stop), fmt)

    def packed(self, start: int, stop: int) -> UInt8:
        """See `PackedTensor.packed`."""
        found: UInt8 = self.parts["rows"].stored(start, stop)
        self._checked(found, start, stop)
        return found


def _arrays(packed: PackedMatrix) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {"codes": packed.data}
    if packed.coded is None:
        found["scales"] = packed.scales
    else:
        found |= {"scale_codes": packed.coded.codes, "scale_units": packed.coded.units}
    if packed.zero_points is not None:
        found["zero_points"] = packed.zero_points
    if packed.offsets is not None:
        offsets = _arrays(packed.offsets)
        found |= {f"offsets|{part}": array for part, array in offsets.items()}
    return found


def _packed(parts: Parts, start: int, stop: int) -> PackedMatrix:
    """Rows [start, stop) of a matrix of `_arrays`."""
    coded = None
    if "scale_codes" in parts:
        units = parts["scale_units"].rows(start, stop)
        coded = ScaleCodes(parts["scale_codes"].stored(start, stop), units)
    offsets = {
        name.removeprefix("offsets|"): part
        for name, part in parts.items()
        if name.startswith("offsets|")
    }
    return PackedMatrix(
        parts["codes"].stored(start, stop),
        parts["scales"].rows(start, stop) if coded is None else coded.values,
        parts["zero_points"].stored(start, stop) if "zero_points" in parts else None,
        coded,
        _packed(offsets, start, stop) if offsets else None,
    )


def _format_key(fmt: StoredFormat) -> str:
    if isinstance(fmt, GgmlFormat):
        return fmt.name
    return f"{fmt.name}-{fmt.block}" + ("+coded" if isinstance(fmt, CodedScales) else "")


def _format_of(key: str, path: Path) -> StoredFormat:
    name, _, coded = key.partition("+")
    try:
        fmt = format_named(name)
    except RequestError as error:
        raise DamagedCheckpoint(f"{path}: {error}", hint=error.hint) from None
    if isinstance(fmt, GgmlFormat):
        return fmt
    assert isinstance(fmt, BlockFormat)
    return CodedScales(fmt) if coded else fmt


def _formats(path: Path) -> dict[str, str]:
    try:
        formats = json.loads(read_metadata(path)["formats"])
    except (KeyError, ValueError):
        formats = None
    if not isinstance(formats, dict):
        raise DamagedCheckpoint(
            f"{path} does not say the formats of its blocks.", hint="Distill the student again."
        )
    return formats


def _not_of_this_model(path: Path, name: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{path} has blocks for '{name}' that are not what the checkpoint holds.",
        hint="The weights were changed after the training; remove the file to round them anew.",
    )
