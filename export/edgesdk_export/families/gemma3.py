"""Gemma 3, and the text part of its multimodal checkpoints: query and key norms, five windowed
layers to each full one, and a rope of their own for the windowed ones (arXiv:2503.19786)."""

from __future__ import annotations

import math
from dataclasses import replace

from edgesdk.bundle.spec import DecoderSpec, RopeSpec
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import config_json, gguf_metadata
from edgesdk_export.families.family import Family, GgufFamily
from edgesdk_export.families.fields import ConfigFields
from edgesdk_export.families.mapping import CheckpointMapping
from edgesdk_export.families.rope_settings import stretched

# The text_config of published multimodal checkpoints leaves out all that equals these.
_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
}
_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0
# llama.cpp scales the queries of this one by hidden_size / heads, not by the head size.
_LAYERS_OF_27B = 62
_VISION = ("*vision_tower.*", "*multi_modal_projector.*")


def from_config(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read config.json of `Gemma3ForCausalLM`, or the `text_config` of
    `Gemma3ForConditionalGeneration`, whose vision tower is left behind."""
    section = "text_config" if checkpoint.config.get("model_type") == "gemma3" else None
    config = config_json.config_fields(checkpoint, _DEFAULTS, section=section)
    head_size = config.count("head_dim")
    spec = config_json.plain_spec(
        config,
        family="gemma3",
        architecture=config_json.architecture_of(checkpoint, "gemma3"),
        activation_key="hidden_activation",
        rope=_global_rope(config, head_size),
    )
    # Embedding models see both ways; no other family reads this.
    config.refuse("use_bidirectional_attention")
    biased = config.flag("attention_bias")
    period = config.count("sliding_window_pattern")
    spec = replace(
        _common(spec),
        qkv_bias=biased,
        o_bias=biased,
        windows=config_json.windows_by_layer_type(
            config,
            spec,
            config.optional_count("sliding_window"),
            _all_but_each(period, spec.layers),
        ),
        local_rope=_local_rope(config, head_size),
        attention_scale=config.positive("query_pre_attn_scalar") ** -0.5,
        logit_softcap=config.optional_positive("final_logit_softcapping"),
    )
    prefix, head = _prefix(checkpoint), config_json.HEAD
    if f"language_model.{head}" in checkpoint.tensors:
        head = f"language_model.{head}"
    # Stored gains are relative to one.
    sources = config_json.config_sources(spec, prefix=prefix, head=head, norm_offset=1.0)
    settled = config_json.SETTLED if section is None else (*config_json.SETTLED, *_VISION)
    return CheckpointMapping(spec, sources, head, settled)


def from_gguf(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read the GGUF architecture "gemma3", whose norm gains are absolute. llama.cpp stretches
    only the rope of the full layers."""
    meta = gguf_metadata.gguf_fields(checkpoint)
    spec = gguf_metadata.plain_spec(checkpoint, meta, family="gemma3", default_theta=_GLOBAL_THETA)
    large = spec.layers == _LAYERS_OF_27B
    window = gguf_metadata.window_of(meta, spec)
    period = meta.count("attention.sliding_window_pattern", 6)
    spec = replace(
        _common(spec),
        activation="gelu_tanh",
        windows=tuple(window if slides else None for slides in _all_but_each(period, spec.layers)),
        local_rope=RopeSpec(meta.positive("rope.freq_base_swa", _LOCAL_THETA), spec.head_size),
        attention_scale=(spec.hidden_size / spec.heads if large else spec.head_size) ** -0.5,
        logit_softcap=meta.optional_positive("final_logit_softcapping"),
    )
    sources = gguf_metadata.gguf_sources(spec)
    return CheckpointMapping(spec, sources, gguf_metadata.HEAD, gguf_metadata.SETTLED)


def _common(spec: DecoderSpec) -> DecoderSpec:
    return replace(
        spec,
        norm_placement="sandwich",
        qk_norm=True,
        embedding_scale=math.sqrt(spec.hidden_size),
    )


def _all_but_each(period: int, layers: int) -> tuple[bool, ...]:
    return tuple((i + 1) % period != 0 for i in range(layers))


def _global_rope(config: ConfigFields, head_size: int) -> RopeSpec:
    per_type = config.within("rope_parameters")
    full = per_type.within("full_attention")
    found = ConfigFields({**full.values, **config.within("rope_scaling").values}, full.where)
    theta = found.positive("rope_theta", config.positive("rope_theta", _GLOBAL_THETA))
    return stretched(config, found, theta=theta, head_size=head_size)


def _local_rope(config: ConfigFields, head_size: int) -> RopeSpec:
    found = config.within("rope_parameters").within("sliding_attention")
    theta = found.positive("rope_theta", config.positive("rope_local_base_freq", _LOCAL_THETA))
    return stretched(config, found, theta=theta, head_size=head_size)


def _prefix(checkpoint: Checkpoint) -> str:
    """Releases of transformers have put the text part under different names, of which the first
    may lack its "model."."""
    for prefix in ("model.language_model.", "language_model.model."):
        starts = (f"{prefix}layers.", f"{prefix.removeprefix('model.')}layers.")
        if any(name.startswith(starts) for name in checkpoint.tensors):
            return prefix
    return "model."


FAMILY = Family(
    "gemma3",
    ("gemma3", "gemma3_text"),
    from_config,
    GgufFamily(
        ("gemma3",),
        from_gguf,
        activation="gelu_tanh",
        window_period=6,
        needs_windows=True,
        tied_only=True,
        layers_of_27b=_LAYERS_OF_27B,
    ),
)
