"""Qwen2 and Qwen2.5: biased query, key and value; windows in the upper layers if asked for
(arXiv:2407.10671)."""

from __future__ import annotations

from dataclasses import replace

from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import config_json, gguf_metadata
from edgesdk_export.families.family import Family, GgufFamily
from edgesdk_export.families.mapping import CheckpointMapping
from edgesdk_export.families.rope_settings import refuse_rope_by_layer_type

_DEFAULTS = {
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def from_config(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read config.json of `Qwen2ForCausalLM`."""
    config = config_json.config_fields(checkpoint, _DEFAULTS)
    refuse_rope_by_layer_type(config)
    architecture = config_json.architecture_of(checkpoint, "qwen2")
    spec = config_json.plain_spec(config, family="qwen2", architecture=architecture)
    spec = replace(spec, qkv_bias=True, windows=config_json.upper_windows(config, spec))
    sources = config_json.config_sources(spec)
    return CheckpointMapping(spec, sources, config_json.HEAD, config_json.SETTLED)


def from_gguf(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read the GGUF architecture "qwen2"."""
    meta = gguf_metadata.gguf_fields(checkpoint)
    spec = gguf_metadata.plain_spec(checkpoint, meta, family="qwen2")
    gguf_metadata.refuse_window(meta, spec)
    spec = replace(spec, qkv_bias=True)
    sources = gguf_metadata.gguf_sources(spec)
    return CheckpointMapping(spec, sources, gguf_metadata.HEAD, gguf_metadata.SETTLED)


FAMILY = Family(
    "qwen2",
    ("qwen2",),
    from_config,
    GgufFamily(
        ("qwen2",),
        from_gguf,
        biases=frozenset(("qkv_bias",)),
        heads_fill_hidden=True,
        is_70b=lambda spec: True,
    ),
)
