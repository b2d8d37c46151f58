"""Hold what every route from a checkpoint to a model file gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgesdk_quantize.divergence import Divergence

from edgesdk.bundle.manifest import ModelShape, Quantization, Role, StaticShape
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.selftest.onnx_decoder import Float32, Ids
from edgesdk_export.selftest.weight_noise import WeightErrors

# Called with (steps done, steps in all).
StepProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class BuiltModel:
    """A model that lies in the bundle's folder, and how to compare it with its checkpoint.

    Attributes:
        spec: the whole `DecoderSpec` as JSON values; None where only the shape is known.
        roles: the files that engines open, by role, where there are several; else `model_file` is
            the decoder.
        static: the sizes of graphs of fixed shapes; None where they take texts of any length.
        exporter: who drew the graph.
        versions: of other tools that took part, by package.
        measure: runs checkpoint and model over windows of tokens.
        run: logits float32 [n, vocab] of tokens int64 [n] by the model's file, as engines open it.
        reference: the same of the checkpoint in float32; with random errors in its weights, where
            their sizes are given.
        encode: token ids of texts by the vocabulary in the model's file; None where the file has
            none, or nothing here reads it.
    """

    shape: ModelShape
    spec: dict[str, Any] | None
    model_file: str
    quantization: Quantization
    exporter: str
    measure: Callable[[Windows, StepProgress], Divergence]
    run: Callable[[Ids], Float32]
    reference: Callable[[Ids, WeightErrors | None], Float32]
    encode: Callable[[Sequence[str]], list[list[int]]] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    roles: dict[Role, str] = field(default_factory=dict)
    static: StaticShape | None = None
