"""Gemma 2: norms on both sides of attention and MLP, soft caps, every other layer windowed
(arXiv:2408.00118)."""

from __future__ import annotations

import math
from dataclasses import replace

from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import config_json, gguf_metadata
from edgesdk_export.families.family import Family, GgufFamily
from edgesdk_export.families.mapping import CheckpointMapping
from edgesdk_export.families.rope_settings import refuse_rope_by_layer_type

_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
# llama.cpp scales the queries of this one by hidden_size / heads, not by the head size.
_LAYERS_OF_27B = 46


def from_config(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read config.json of `Gemma2ForCausalLM`."""
    config = config_json.config_fields(checkpoint, _DEFAULTS)
    refuse_rope_by_layer_type(config)
    spec = config_json.plain_spec(
        config,
        family="gemma2",
        architecture=config_json.architecture_of(checkpoint, "gemma2"),
        activation_key="hidden_activation",
    )
    biased = config.flag("attention_bias")
    spec = replace(
        spec,
        norm_placement="sandwich",
        qkv_bias=biased,
        o_bias=biased,
        windows=config_json.windows_by_layer_type(
            config, spec, config.optional_count("sliding_window"), _every_other(spec.layers)
        ),
        attention_scale=config.positive("query_pre_attn_scalar") ** -0.5,
        attention_softcap=config.optional_positive("attn_logit_softcapping"),
        logit_softcap=config.optional_positive("final_logit_softcapping"),
        embedding_scale=math.sqrt(spec.hidden_size),
    )
    # Stored gains are relative to one.
    sources = config_json.config_sources(spec, norm_offset=1.0)
    return CheckpointMapping(spec, sources, config_json.HEAD, config_json.SETTLED)


def from_gguf(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read the GGUF architecture "gemma2", whose norm gains are absolute."""
    meta = gguf_metadata.gguf_fields(checkpoint)
    spec = gguf_metadata.plain_spec(checkpoint, meta, family="gemma2")
    large = spec.layers == _LAYERS_OF_27B
    window = gguf_metadata.window_of(meta, spec)
    spec = replace(
        spec,
        norm_placement="sandwich",
        activation="gelu_tanh",
        windows=tuple(window if slides else None for slides in _every_other(spec.layers)),
        attention_scale=(spec.hidden_size / spec.heads if large else spec.head_size) ** -0.5,
        attention_softcap=meta.positive("attn_logit_softcapping", 50.0),
        logit_softcap=meta.positive("final_logit_softcapping", 30.0),
        embedding_scale=math.sqrt(spec.hidden_size),
    )
    sources = gguf_metadata.gguf_sources(spec)
    return CheckpointMapping(spec, sources, gguf_metadata.HEAD, gguf_metadata.SETTLED)


def _every_other(layers: int) -> tuple[bool, ...]:
    return tuple(i % 2 == 0 for i in range(layers))


FAMILY = Family(
    "gemma2",
    ("gemma2",),
    from_config,
    GgufFamily(
        ("gemma2",),
        from_gguf,
        activation="gelu_tanh",
        window_period=2,
        tied_only=True,
        softcaps=True,
        partial_rope=True,
        layers_of_27b=_LAYERS_OF_27B,
    ),
)
