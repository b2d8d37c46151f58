"""Hold an encoder checkpoint, understood; and what the encoders' families read alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgesdk.bundle.encoder_spec import Activation, EncoderSpec, encoder_shapes
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families.fields import ConfigFields
from edgesdk_export.families.mapping import WeightSource

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "relu": "relu",
}


@dataclass(frozen=True)
class EncoderMapping:
    """An encoder checkpoint, understood.

    Attributes:
        sources: by canonical name; exactly the names of `encoder_shapes(spec)`.
        unused: patterns of tensors that no vector and no score is made with.
    """

    spec: EncoderSpec
    sources: Mapping[str, WeightSource]
    unused: tuple[str, ...]


def activation_of(config: ConfigFields, key: str) -> Activation:
    """The activation under a key, as `EncoderSpec` names it.

    Raises:
        ConfigMismatch: it is none of those that a spec can say.
    """
    name = config.text(key)
    if name not in ACTIVATIONS:
        raise config.mismatch(f"the activation '{name}' is not supported")
    return ACTIVATIONS[name]


def scores_pairs(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is of a model that classifies."""
    names = checkpoint.config.get("architectures")
    found = names[0] if isinstance(names, list) and names else ""
    return str(found).endswith("ForSequenceClassification")


def require_one_label(checkpoint: Checkpoint, config: ConfigFields, tensor: str) -> None:
    """Refuse a classifier of several classes.

    Raises:
        ConfigMismatch: the tensor has another number of rows than 1.
    """
    found = checkpoint.tensors.get(tensor)
    if found is not None and found.shape[0] != 1:
        raise config.mismatch(
            f"the model sorts texts into {found.shape[0]} classes; a reranker has one score"
        )


def named_sources(
    spec: EncoderSpec, templates: Mapping[str, str], prefix: str
) -> dict[str, WeightSource]:
    """Where a checkpoint's own names put each canonical weight.

    Args:
        templates: of each part of a canonical name ("q", "attention_norm", "head.dense"): its own,
            with {i} for the layer. One that begins with "/" stands without the prefix.
    """
    found: dict[str, WeightSource] = {}
    for name in encoder_shapes(spec):
        part, _, kind = name.rpartition(".")
        layer = ""
        if part.startswith("layers."):
            _, layer, part = part.split(".")
        own = templates[part].format(i=layer)
        own = own[1:] if own.startswith("/") else prefix + own
        found[name] = WeightSource(f"{own}.{kind}")
    return found
