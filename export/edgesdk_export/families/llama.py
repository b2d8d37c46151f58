"""Llama, Mistral, Ministral and SmolLM: the plain decoder (arXiv:2302.13971, arXiv:2310.06825)."""

from __future__ import annotations

from dataclasses import replace

from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import config_json, gguf_metadata
from edgesdk_export.families.family import Family, GgufFamily
from edgesdk_export.families.mapping import CheckpointMapping, WeightSource

# transformers' defaults for what published configurations leave out.
_DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_MISTRAL_DEFAULTS = {
    **_DEFAULTS,
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}


def from_config(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read config.json of `LlamaForCausalLM`, `MistralForCausalLM` or `MinistralForCausalLM`, which
    transformers takes a Mistral with `layer_types` for."""
    mistral = checkpoint.config.get("model_type") != "llama"
    config = config_json.config_fields(checkpoint, _MISTRAL_DEFAULTS if mistral else _DEFAULTS)
    architecture = config_json.architecture_of(checkpoint, "llama")
    spec = config_json.plain_spec(config, family="llama", architecture=architecture)
    if mistral:
        window = config.optional_count("sliding_window")
        slides = (window is not None,) * spec.layers
        windows = config_json.windows_by_layer_type(config, spec, window, slides)
        spec = replace(spec, windows=windows)
    else:
        biased = config.flag("attention_bias")
        spec = replace(spec, qkv_bias=biased, o_bias=biased, mlp_bias=config.flag("mlp_bias"))
    sources = config_json.config_sources(spec)
    return CheckpointMapping(spec, sources, config_json.HEAD, config_json.SETTLED)


def from_gguf(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read the GGUF architecture "llama", whose query and key rows are in the interleaved rope
    order (llama.cpp's `LlamaModel.permute`)."""
    meta = gguf_metadata.gguf_fields(checkpoint)
    spec = gguf_metadata.plain_spec(checkpoint, meta, family="llama")
    gguf_metadata.refuse_window(meta, spec)
    spec = replace(
        spec,
        qkv_bias=gguf_metadata.has_bias(checkpoint, "q"),
        o_bias=gguf_metadata.has_bias(checkpoint, "o"),
        mlp_bias=gguf_metadata.has_bias(checkpoint, "down"),
    )
    if spec.rope.rotary_size != spec.head_size:
        raise meta.mismatch("rotating a part of each head is not supported")
    sources = {
        name: _half_split(source, spec.head_size) if _is_rotated(name) else source
        for name, source in gguf_metadata.gguf_sources(spec).items()
    }
    return CheckpointMapping(spec, sources, gguf_metadata.HEAD, gguf_metadata.SETTLED)


def _is_rotated(canonical: str) -> bool:
    return config_json.split_name(canonical)[1] in ("q", "k")


def _half_split(source: WeightSource, head_size: int) -> WeightSource:
    return replace(source, interleaved_head=head_size)


FAMILY = Family(
    "llama",
    ("llama", "mistral", "ministral"),
    from_config,
    GgufFamily(
        ("llama",),
        from_gguf,
        biases=frozenset(("qkv_bias", "o_bias", "mlp_bias")),
        frequency_factors=True,
        interleaved_rope=True,
        is_70b=lambda spec: spec.heads != spec.kv_heads,
    ),
)
