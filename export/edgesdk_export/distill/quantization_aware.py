"""Let a student train through the number format that it ships in.

Linear layers get a `NumberGrid` between their weights and their product. Embedding and head, and
what a GGUF's mixture stores in other types than Q4_0 and Q4_K, are rounded before training begins
and stay as they are: they have more bits, and the others learn with them. At the end each weight is
the value that its code stands for, and the blocks go with the checkpoint
(`edgesdk_export.checkpoint.trained_blocks`), so that an export stores what was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import torch
from edgesdk_quantize.formats import BlockFormat, FloatFormat, PackedMatrix
from edgesdk_quantize.formats.ggml import GgmlFormat
from edgesdk_quantize.formats.trained_grids import (
    TrainedFormat,
    first_grid,
    is_trainable,
    packed_grid,
)
from torch import Tensor, nn
from torch.nn import functional

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk.errors import RequestError
from edgesdk_export.checkpoint import Checkpoint, open_checkpoint
from edgesdk_export.checkpoint.trained_blocks import TrainedMatrix, write_trained_blocks
from edgesdk_export.distill.calibrated_start import calibrate_start
from edgesdk_export.distill.number_grid import NumberGrid
from edgesdk_export.distill.quantize_recipe import QuantizeRecipe
from edgesdk_export.distill.samples import Sample
from edgesdk_export.families import read_decoder
from edgesdk_export.families.registry import reader_of
from edgesdk_export.gguf.file_types import choose_types
from edgesdk_export.gguf.tensors import target_tensors
from edgesdk_export.padded_heads import padded_size
from edgesdk_export.recipes.recipe import Recipe

# With it `edgesdk export` stores what was trained.
EXPORT_RECIPE_FILE = "export.toml"
# What a bundle's or a GGUF's matrices are stored in.
_StoredFormat: TypeAlias = TrainedFormat | FloatFormat
_OUTER = ("embed.weight", "head.weight")


@dataclass(frozen=True)
class TensorFormat:
    """The format of one matrix.

    Attributes:
        fmt: the format.
        trained: whether the matrix trains in it.
    """

    fmt: _StoredFormat
    trained: bool


def quantized_student(
    model: Any, folder: Path, recipe: QuantizeRecipe | None, samples: Sequence[Sample] = ()
) -> QuantizedStudent | None:
    """A model in the number formats that it trains through; None where the recipe has none.

    Args:
        folder: the model's checkpoint.
        samples: what a start is calibrated on.

    Raises:
        RequestError, CheckpointError: see `tensor_formats` and `QuantizedStudent`.
    """
    if recipe is None:
        return None
    checkpoint = open_checkpoint(folder)
    formats = tensor_formats(checkpoint, recipe)
    packed: Mapping[str, PackedMatrix] = {}
    if recipe.start == "calibrated":
        scheme = recipe.export_recipe().onnx_scheme(read_decoder(checkpoint).spec.parameters)
        assert isinstance(scheme.linear, BlockFormat)
        packed = calibrate_start(model, checkpoint, scheme.linear, samples)
    return QuantizedStudent(model, formats, recipe.train, packed)


def save_blocks(folder: Path, blocks: Mapping[str, TrainedMatrix], recipe: QuantizeRecipe) -> None:
    """Write the blocks beside a checkpoint, and the recipe that exports them as they are."""
    write_trained_blocks(folder, blocks)
    (folder / EXPORT_RECIPE_FILE).write_text(recipe.export_recipe().to_toml(), encoding="utf-8")


def tensor_formats(checkpoint: Checkpoint, recipe: QuantizeRecipe) -> dict[str, TensorFormat]:
    """The format of each matrix of a checkpoint, by its tensor's name, as an export with the
    recipe will store it.

    Raises:
        RequestError: the format cannot hold this model's matrices as they are.
        CheckpointError: see `read_decoder`.
    """
    decoder = read_decoder(checkpoint)
    sources = reader_of(checkpoint)(checkpoint).sources
    spec, wanted = decoder.spec, recipe.export_recipe()
    if wanted.gguf is not None:
        formats = _gguf_formats(spec, wanted)
    else:
        if padded_size(spec.head_size) != spec.head_size:
            raise RequestError(
                f"Heads of {spec.head_size} values are padded in an ONNX graph, so the blocks that"
                " were trained would not fit it.",
                hint="Train for a GGUF: a type such as q4_0.",
            )
        formats = _onnx_formats(spec, wanted)
    return {
        sources[name].tensor: TensorFormat(fmt, name not in _OUTER and is_trainable(fmt))
        for name, fmt in formats.items()
    }


def _onnx_formats(spec: DecoderSpec, recipe: Recipe) -> dict[str, _StoredFormat]:
    scheme = recipe.onnx_scheme(spec.parameters)
    found: dict[str, _StoredFormat] = {}
    for name, shape in canonical_shapes(spec).items():
        if len(shape) < 2:
            continue
        fmt = scheme.linear
        if name == "embed.weight":
            fmt = scheme.embedding_for(spec.tied, shape[1])
        elif name == "head.weight":
            fmt = scheme.embedding
        found[name] = fmt if isinstance(fmt, FloatFormat) else fmt.for_columns(shape[1])
    return found


def _gguf_formats(spec: DecoderSpec, recipe: Recipe) -> dict[str, _StoredFormat]:
    tensors = [tensor for tensor in target_tensors(spec) if len(tensor.shape) > 1]
    places = [tensor.place for tensor in tensors]
    types = choose_types(recipe.gguf_type(spec.parameters), spec, places, weighted=False)
    return {part: types[tensor.name] for tensor in tensors for part in tensor.parts}


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is rounded to a grid before it multiplies."""

    def __init__(self, linear: nn.Linear, grid: NumberGrid) -> None:
        super().__init__()
        self.weight, self.bias, self.grid = linear.weight, linear.bias, grid

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, self.grid(self.weight), self.bias)


class QuantizedStudent:
    """A transformers model that trains through number formats. The model is changed in place.

    Args:
        formats: of its matrices; see `tensor_formats`.
        train: see `QuantizeRecipe`.
        packed: matrices whose grid is known, by name; others get the one that their format finds.

    Raises:
        RequestError: a matrix is not found in the model, or does not fit its format.
    """

    def __init__(
        self,
        model: Any,
        formats: Mapping[str, TensorFormat],
        train: str,
        packed: Mapping[str, PackedMatrix] = MappingProxyType({}),
    ) -> None:
        self._model = model
        self._grids: dict[str, QuantizedLinear] = {}
        self._kept: dict[str, TrainedMatrix] = {}
        for name, found in formats.items():
            path = name.removesuffix(".weight")
            try:
                module = model.get_submodule(path)
            except AttributeError:
                raise RequestError(
                    f"A {type(model).__name__} has no {path!r}, so it cannot train quantized.",
                    hint="Train it without [quantize], and export the student with --recipe best.",
                ) from None
            if found.trained and isinstance(module, nn.Linear):
                assert not isinstance(found.fmt, FloatFormat)
                self._replace(path, _with_grid(module, found.fmt, train, packed.get(name)))
            else:
                self._round(name, module, found.fmt)

    def finish(self) -> dict[str, TrainedMatrix]:
        """Give the model its plain layers back, with weights that are the values of their codes.

        Returns:
            The blocks, by the checkpoint's names.
        """
        blocks = dict(self._kept)
        for path, layer in self._grids.items():
            matrix = TrainedMatrix(layer.grid.fmt, layer.grid.packed(layer.weight))
            rows, columns = layer.weight.shape
            plain = nn.Linear(columns, rows, bias=layer.bias is not None, device="meta")
            values = torch.from_numpy(matrix.values(columns)).to(layer.weight.device)
            plain.weight, plain.bias = nn.Parameter(values), layer.bias
            self._model.set_submodule(path, plain)
            blocks[f"{path}.weight"] = matrix
        self._grids = {}
        return blocks

    def _replace(self, path: str, layer: QuantizedLinear) -> None:
        self._model.set_submodule(path, layer)
        self._grids[path] = layer

    def _round(self, name: str, module: Any, fmt: _StoredFormat) -> None:
        """Round a matrix once, and let it be."""
        weight: nn.Parameter = module.weight
        weight.requires_grad_(False)
        rows = weight.detach().cpu().numpy()
        if isinstance(fmt, FloatFormat):
            values = fmt.quantize(rows).astype(np.float32)
        else:
            matrix = TrainedMatrix(fmt, fmt.quantize(rows))
            values = matrix.values(rows.shape[1])
            if not (isinstance(fmt, GgmlFormat) and fmt.is_float):
                self._kept[name] = matrix
        with torch.no_grad():
            weight.copy_(torch.from_numpy(values))


def _with_grid(
    linear: nn.Linear, fmt: TrainedFormat, train: str, packed: PackedMatrix | None
) -> QuantizedLinear:
    if packed is None:
        first = first_grid(fmt, linear.weight.detach().cpu().numpy())
    else:
        assert isinstance(fmt, BlockFormat)
        first = packed_grid(fmt, packed)
    grid = NumberGrid(fmt, first)
    if train == "scales":
        grid.fix_codes(linear.weight)
        linear.weight.requires_grad_(False)
    return QuantizedLinear(linear, grid.to(linear.weight.device))
