"""Find an encoder's family, and read its checkpoint as an `Encoder`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from edgesdk.bundle.encoder_spec import encoder_shapes
from edgesdk.errors import ConfigMismatch
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import bert, modernbert, nomic_bert
from edgesdk_export.families.encoder_fields import EncoderMapping
from edgesdk_export.families.reader import weight_views
from edgesdk_export.weights import Encoder

# By `model_type` in config.json.
ENCODER_FAMILIES: Mapping[str, Callable[[Checkpoint], EncoderMapping]] = {
    "bert": bert.from_config,
    "roberta": bert.from_config,
    "xlm-roberta": bert.from_config,
    "nomic_bert": nomic_bert.from_config,
    "modernbert": modernbert.from_config,
}


def is_encoder(checkpoint: Checkpoint) -> bool:
    """Whether a family of encoders describes the checkpoint."""
    return checkpoint.config.get("model_type") in ENCODER_FAMILIES


def read_encoder(checkpoint: Checkpoint) -> Encoder:
    """Read a checkpoint of safetensors as an encoder; the weights are read later.

    Raises:
        ConfigMismatch: the configuration and the tensors contradict each other, a tensor is
            missing or left over, or the configuration asks for what `EncoderSpec` cannot say.
    """
    reading = ENCODER_FAMILIES[checkpoint.config["model_type"]](checkpoint)
    spec = reading.spec
    if spec.hidden_size % spec.heads or spec.head_size % 2:
        raise ConfigMismatch(
            f"{checkpoint.path}: {spec.heads} heads do not divide the hidden size"
            f" {spec.hidden_size} into even parts.",
            hint="Compare the configuration with the one that the model was published with.",
        )
    weights = weight_views(checkpoint, reading.sources, encoder_shapes(spec))
    used = {source.tensor for source in reading.sources.values()}
    for name in checkpoint.tensors:
        if name not in used and not any(fnmatchcase(name, known) for known in reading.unused):
            raise ConfigMismatch(
                f"{checkpoint.path}: tensor '{name}' has no place in a {spec.family} encoder of"
                " this configuration.",
                hint="Take the configuration that came with these weights.",
            )
    return Encoder(spec, weights)
