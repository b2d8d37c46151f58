"""What every route from a checkpoint to a model gives, whichever tool drew the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edgesdk_quantize.divergence import Divergence

from edgesdk.bundle.manifest import ModelShape, Quantization
from edgesdk_export.quality.text import Windows

# Called with (steps done, steps in all).
Steps = Callable[[int, int], None]


@dataclass(frozen=True)
class BuiltModel:
    """A model that lies in the bundle's folder, and how to compare it with its checkpoint.

    Attributes:
        spec: the whole `DecoderSpec` as JSON values; None where only the shape is known.
        exporter: who drew the graph.
        versions: of other tools that took part, by package.
        measure: runs checkpoint and model over windows of tokens.
    """

    shape: ModelShape
    spec: dict[str, Any] | None
    model_file: str
    quantization: Quantization
    exporter: str
    measure: Callable[[Windows, Steps], Divergence]
    versions: dict[str, str] = field(default_factory=dict)
