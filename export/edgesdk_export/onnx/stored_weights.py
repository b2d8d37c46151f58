"""Stored weights: the names under which a graph finds them, and how a decoder becomes them.

The canonical linear layers are stored as these matrices [rows, columns]:

    embed                    token embedding; the head too where they are tied
    layers.{i}.qkv           rows of q, k and v, one after another
    layers.{i}.o, .gate, .up, .down
    head                     where it is not tied

and a matrix M as these tensors:

    M.weight                 float32 or float16 [rows, columns]
    M.codes                  or uint8 [rows, blocks, bytes], with
    M.scales                 float32 [rows, blocks]
      or M.scale_codes       uint8 [rows, blocks], with
         M.scale_units       float32 [rows, 1], and where the format has them
    M.zero_points            uint8 [rows, bytes]
      or M.offsets           a matrix [rows, blocks] of its own, stored as M is
    M.bias                   float32 [rows], where the model has one
    embed.rows               embed.codes once more, seen as [rows, bytes] by the gather

Norm gains are `<norm>.weight`, float32; rope tables of the first positions are `rope.cos`,
`rope.sin` and, where windowed layers have their own, `local_rope.cos`, `local_rope.sin`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk_export.weights import Decoder, read_whole


def matrix_parts(spec: DecoderSpec) -> dict[str, tuple[str, ...]]:
    """Stored matrix -> the canonical linear layers whose rows it holds, in graph order."""
    matrices: dict[str, tuple[str, ...]] = {"embed": ("embed",)}
    for index in range(spec.layers):
        at = f"layers.{index}."
        matrices[at + "qkv"] = (at + "q", at + "k", at + "v")
        for part in ("o", "gate", "up", "down"):
            matrices[at + part] = (at + part,)
    if not spec.tied:
        matrices["head"] = ("head",)
    return matrices


def norm_names(spec: DecoderSpec) -> list[str]:
    """Stored names of the norm gains, in graph order."""
    return [name for name in canonical_shapes(spec) if name.endswith("norm.weight")]


class StoredTensors:
    """The stored weights of a written model: headers, whose bytes are mapped and not read."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        self._tensors = tensors

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> ir.TensorProtocol:
        return self._tensors[name]

    def with_others(self, others: Mapping[str, ir.TensorProtocol]) -> StoredTensors:
        """The same and some more, which the graph's own file will hold."""
        return StoredTensors({**self._tensors, **others})

    def rows(self, name: str, start: int, stop: int) -> ir.TensorProtocol:
        """Rows [start, stop) of a tensor."""
        return ir.tensor(self._tensors[name].numpy()[start:stop], name=name)

    def mapped(
        self, change: Callable[[str, ir.TensorProtocol], ir.TensorProtocol]
    ) -> StoredTensors:
        """The same names, each with what `change` makes of its tensor."""
        return StoredTensors({name: change(name, each) for name, each in self._tensors.items()})


def read_stored(model_path: Path) -> StoredTensors:
    """The stored weights of a model file that `write_decoder` wrote."""
    model = ir.load(model_path)
    values = model.graph.initializers
    return StoredTensors(
        {name: value.const_value for name, value in values.items() if value.const_value is not None}
    )


class FloatTensors:
    """A decoder's own weights under their stored names, as float32.

    A tensor is read when it is looked up and is not kept: it lives as long as the caller holds
    it. There are no rope tables among them.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._matrices = matrix_parts(decoder.spec)
        self._names = self._all_names()

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> ir.TensorProtocol:
        if name not in self._names:
            raise KeyError(name)
        matrix, _, part = name.rpartition(".")
        parts = self._matrices.get(matrix, (matrix,))
        read = [read_whole(self._decoder.weights[f"{piece}.{part}"]) for piece in parts]
        return ir.tensor(read[0] if len(read) == 1 else np.concatenate(read), name=name)

    def rows(self, name: str, start: int, stop: int) -> ir.TensorProtocol:
        """Rows [start, stop) of the embedding or the head, without reading the others."""
        return ir.tensor(self._decoder.weights[name].rows(start, stop), name=name)

    def _all_names(self) -> frozenset[str]:
        spec = self._decoder.spec
        names = [f"{matrix}.weight" for matrix in self._matrices]
        names += [
            f"{matrix}.bias"
            for matrix, parts in self._matrices.items()
            if f"{parts[0]}.bias" in self._decoder.weights
        ]
        names += norm_names(spec)
        return frozenset(names)
