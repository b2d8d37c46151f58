"""A decoder's weights as llama.cpp's tensors: their names, what is fused, and the order of rows.

Names: llama.cpp's gguf-py/gguf/constants.py. What each architecture wants is the inverse of what
`edgesdk_export.families` does to a GGUF that comes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from edgesdk_quantize.formats.blocks import UInt8

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk_export.families.config_json import split_name
from edgesdk_export.families.gguf_metadata import TENSOR_NAMES
from edgesdk_export.families.registry import gguf_family
from edgesdk_export.gguf.file_types import MatrixPlace, Role
from edgesdk_export.weights import (
    Decoder,
    Float32,
    PackedTensor,
    require_finite,
    row_chunks,
    row_ranges,
)

_Rows = TypeVar("_Rows", Float32, UInt8)

_ROLES: dict[str, Role] = {
    "embed": "embedding",
    "head": "head",
    "v": "v",
    "qkv": "qkv",
    "o": "o",
    "down": "down",
}


@dataclass(frozen=True)
class TargetTensor:
    """One tensor of the file.

    Attributes:
        name: llama.cpp's.
        shape: rows first.
        parts: the canonical weights whose rows it holds, one after another.
        layer: None = embedding, head, final norm.
        role: what it is to the rules of a mixture.
        interleaved_head: the head size, where the rows of a head stand in the interleaved rope
            order; else None.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    layer: int | None
    role: Role
    interleaved_head: int | None = None

    @property
    def place(self) -> MatrixPlace:
        """How a mixture's rules see it."""
        return MatrixPlace(self.name, self.role, self.layer or 0, self.shape[-1])

    def chunks(self, decoder: Decoder) -> Iterator[Float32]:
        """Its values as float32, a few rows at a time.

        Raises:
            ExportError: a weight is NaN or infinite.
        """
        for part in self.parts:
            start = 0
            for chunk in row_chunks(decoder.weights[part], multiple=self.interleaved_head or 1):
                require_finite(part, chunk, first_row=start)
                start += len(chunk)
                yield (
                    chunk
                    if self.interleaved_head is None
                    else interleave(chunk, self.interleaved_head)
                )

    def packed_chunks(self, decoder: Decoder) -> Iterator[UInt8]:
        """Its rows as they are stored, where every part is a `PackedTensor`, a few at a time."""
        head = self.interleaved_head
        for part in self.parts:
            weight = decoder.weights[part]
            assert isinstance(weight, PackedTensor)
            for start, stop in row_ranges(weight, multiple=head or 1):
                rows = weight.packed(start, stop)
                yield rows if head is None else interleave(rows, head)


def target_tensors(spec: DecoderSpec) -> tuple[TargetTensor, ...]:
    """All weights of a decoder, in the order of `canonical_shapes`."""
    shapes = canonical_shapes(spec)
    family = gguf_family(spec)
    fused = {} if family is None else family.fused
    interleaved = family is not None and family.interleaved_rope
    whole_of = {parts[0]: whole for whole, (_, parts) in fused.items()}
    later = {part for _, parts in fused.values() for part in parts[1:]}
    tensors = []
    for canonical, shape in shapes.items():
        layer, part, kind = split_name(canonical)
        if part in later:
            continue
        before = "" if layer is None else f"blk.{layer}."
        if part in whole_of:
            name, parts = fused[whole_of[part]]
            names = tuple(canonical.replace(f".{part}.", f".{other}.") for other in parts)
            rows = sum(shapes[other][0] for other in names)
            stored = TargetTensor(
                f"{before}{name}.{kind}",
                (rows, *shape[1:]),
                names,
                layer,
                _ROLES.get(whole_of[part], "other"),
            )
        else:
            rotated = interleaved and part in ("q", "k")
            stored = TargetTensor(
                f"{before}{TENSOR_NAMES[part]}.{kind}",
                shape,
                (canonical,),
                layer,
                _ROLES.get(part, "other"),
                spec.head_size if rotated else None,
            )
        tensors.append(stored)
    return tuple(tensors)


def interleave(rows: _Rows, size: int) -> _Rows:
    """Whole heads from the half-split to the interleaved rope order: value `s * size / 2 + i` of a
    head becomes value `2 i + s` (llama.cpp's `LlamaModel.permute`)."""
    tail = rows.shape[1:]
    heads = rows.reshape(-1, 2, size // 2, *tail).swapaxes(1, 2)
    return np.ascontiguousarray(heads.reshape(-1, *tail))
