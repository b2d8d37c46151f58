"""Phi-3 and Phi-4-mini: fused query/key/value and gate/up, longrope, partial rotation
(arXiv:2404.14219)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import config_json, gguf_metadata
from edgesdk_export.families.family import Family, GgufFamily
from edgesdk_export.families.fields import ConfigFields
from edgesdk_export.families.mapping import CheckpointMapping, WeightSource

_DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def from_config(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read config.json of `Phi3ForCausalLM`."""
    config = config_json.config_fields(checkpoint, _DEFAULTS)
    architecture = config_json.architecture_of(checkpoint, "phi3")
    spec = config_json.plain_spec(
        _named_longrope(config), family="phi3", architecture=architecture, partial_rotary=True
    )
    if spec.rope.kind not in ("default", "longrope"):
        raise config.mismatch(f"phi3 with '{spec.rope.kind}' rope is not supported")
    window = config.optional_count("sliding_window")
    if window is not None and window < spec.context_length:
        spec = replace(spec, windows=(window,) * spec.layers)
    sources = _fused(
        spec, config_json.config_sources(spec), qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj"
    )
    return CheckpointMapping(spec, sources, config_json.HEAD, config_json.SETTLED)


def _named_longrope(config: ConfigFields) -> ConfigFields:
    """The first checkpoints called longrope "su" or "yarn"."""
    key = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    found = config.within(key)
    if found.text("rope_type", found.text("type", "default")) not in ("su", "yarn"):
        return config
    renamed = {**found.values, "rope_type": "longrope"}
    return ConfigFields({**config.values, key: renamed}, config.where)


def from_gguf(checkpoint: Checkpoint) -> CheckpointMapping:
    """Read the GGUF architecture "phi3"."""
    meta = gguf_metadata.gguf_fields(checkpoint)
    spec = gguf_metadata.plain_spec(checkpoint, meta, family="phi3")
    spec = replace(spec, windows=(gguf_metadata.window_of(meta, spec),) * spec.layers)
    sources = _fused(spec, gguf_metadata.gguf_sources(spec), qkv="attn_qkv", gate_up="ffn_up")
    return CheckpointMapping(spec, sources, gguf_metadata.HEAD, gguf_metadata.SETTLED)


def _fused(
    spec: DecoderSpec, sources: Mapping[str, WeightSource], *, qkv: str, gate_up: str
) -> dict[str, WeightSource]:
    """Sources whose query, key and value rows are parts of one tensor, and gate and up of one."""
    q_rows, kv_rows = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    inner = spec.intermediate_size
    parts = {
        "q": (qkv, 0, q_rows),
        "k": (qkv, q_rows, q_rows + kv_rows),
        "v": (qkv, q_rows + kv_rows, q_rows + 2 * kv_rows),
        "gate": (gate_up, 0, inner),
        "up": (gate_up, inner, 2 * inner),
    }
    fused = dict(sources)
    for name, source in sources.items():
        layer, part, kind = config_json.split_name(name)
        if part in parts:
            tensor, start, stop = parts[part]
            # "blk.3." or "model.layers.3.": what stands before the layer's own names.
            before = source.tensor[: source.tensor.index(f".{layer}.") + len(f".{layer}.")]
            fused[name] = WeightSource(f"{before}{tensor}.{kind}", start, stop)
    return fused


FAMILY = Family(
    "phi3",
    ("phi3",),
    from_config,
    GgufFamily(
        ("phi3",),
        from_gguf,
        frequency_factors=True,
        long_factors=True,
        partial_rope=True,
        heads_fill_hidden=True,
        fused={"qkv": ("attn_qkv", ("q", "k", "v")), "gate_up": ("ffn_up", ("gate", "up"))},
    ),
)
