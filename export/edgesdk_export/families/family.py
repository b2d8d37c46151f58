"""Define what a family file says: how its checkpoints are read, and what a GGUF can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families.mapping import CheckpointMapping

Read = Callable[[Checkpoint], CheckpointMapping]


def _never(spec: DecoderSpec) -> bool:
    return False


@dataclass(frozen=True)
class GgufFamily:
    """A family in GGUF files, and what llama.cpp computes for it (its `load_hparams`).

    Attributes:
        architectures: what `general.architecture` calls it; the first one is written.
        read: understands a GGUF of it.
        activation: of the gate.
        biases: of the attention's and the MLP's layers that may be there, by `DecoderSpec` field.
        window_period: every how many layers one sees the whole context; None = all do.
        needs_windows: whether the other layers must have a window.
        tied_only: whether the head must be the embedding.
        softcaps: whether scores and logits are capped, always; else scores never are.
        frequency_factors: whether it reads factors of the rope's frequencies.
        long_factors: whether it reads two sets of them, for short and for long contexts.
        partial_rope: whether it can rotate a part of each head.
        heads_fill_hidden: whether the heads' sizes must add up to the hidden size.
        layers_of_27b: the number of layers by which llama.cpp knows the model whose queries are
            scaled by hidden_size / heads in place of the head size.
        interleaved_rope: whether query and key rows stand in the interleaved rope order.
        fused: matrices that are one tensor: name of the whole -> llama.cpp's name, and its parts
            from the top down.
        is_70b: whether llama-quantize takes a decoder of 80 layers for a model of 70 billion
            parameters.
    """

    architectures: tuple[str, ...]
    read: Read
    activation: str = "silu"
    biases: frozenset[str] = frozenset()
    window_period: int | None = None
    needs_windows: bool = False
    tied_only: bool = False
    softcaps: bool = False
    frequency_factors: bool = False
    long_factors: bool = False
    partial_rope: bool = False
    heads_fill_hidden: bool = False
    layers_of_27b: int | None = None
    interleaved_rope: bool = False
    fused: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    is_70b: Callable[[DecoderSpec], bool] = _never


@dataclass(frozen=True)
class Family:
    """An architecture family. Both ways of reading raise `ConfigMismatch` for what a `DecoderSpec`
    cannot say.

    Attributes:
        name: what `DecoderSpec.family` says.
        model_types: what `model_type` in config.json calls it.
        read_config: understands a checkpoint that came with a config.json.
        gguf: its GGUF side; None = llama.cpp does not run it, or nobody has described how.
    """

    name: str
    model_types: tuple[str, ...]
    read_config: Read
    gguf: GgufFamily | None
