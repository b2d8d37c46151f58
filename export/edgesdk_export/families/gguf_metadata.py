"""What the families' GGUF metadata has in common (names: llama.cpp's gguf-py/gguf/constants.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families.config_json import split_name
from edgesdk_export.families.fields import MAX_LAYERS, ConfigFields
from edgesdk_export.families.mapping import WeightSource
from edgesdk_export.families.rope_settings import (
    GGUF_FREQUENCIES,
    GGUF_LONG,
    GGUF_SHORT,
    rope_from_gguf,
)

HEAD = "output.weight"
EMBEDDING = "token_embd.weight"
SETTLED = (GGUF_FREQUENCIES, GGUF_LONG, GGUF_SHORT, "blk.*.attn_rot_embd")

# Keys (without the architecture) that change what a decoder computes, and neutral values.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "expert_count": (0, 1),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "use_parallel_residual": (),
    "pooling_type": (0,),
}

TENSOR_NAMES = {
    "embed": "token_embd",
    "input_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "post_attention_norm": "post_attention_norm",
    "pre_mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "post_mlp_norm": "post_ffw_norm",
    "final_norm": "output_norm",
    "head": "output",
}


def gguf_fields(checkpoint: Checkpoint) -> ConfigFields:
    """The architecture's own metadata, keys without its name in front.

    Raises:
        ConfigMismatch: it asks for something that `DecoderSpec` cannot say.
    """
    start = f"{checkpoint.config['general.architecture']}."
    values = {
        key[len(start) :]: value
        for key, value in checkpoint.config.items()
        if key.startswith(start)
    }
    meta = ConfigFields(values, f"{checkpoint.path}: {start}*")
    for key, neutral in _UNSUPPORTED.items():
        meta.refuse(key, *neutral)
    if not meta.flag("attention.causal", True):
        raise meta.mismatch("attention that is not causal is not supported")
    return meta


def plain_spec(
    checkpoint: Checkpoint, meta: ConfigFields, *, family: str, default_theta: float = 10_000.0
) -> DecoderSpec:
    """The spec of a decoder with pre-norms, no biases and full attention in every layer. The head
    is tied where there is no tensor for it, as llama.cpp has it."""
    hidden, heads = meta.count("embedding_length"), meta.count("attention.head_count")
    layers = meta.count("block_count", limit=MAX_LAYERS)
    head_size = meta.count("attention.key_length", max(1, hidden // heads))
    if meta.count("attention.value_length", head_size) != head_size:
        raise meta.mismatch("keys and values of different sizes are not supported")
    embedding = checkpoint.tensors.get(EMBEDDING)
    return DecoderSpec(
        family=family,
        architecture=str(checkpoint.config["general.architecture"]),
        vocab_size=meta.count("vocab_size", embedding.shape[0] if embedding else None),
        hidden_size=hidden,
        intermediate_size=meta.count("feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=meta.count("attention.head_count_kv", heads),
        head_size=head_size,
        context_length=meta.count("context_length"),
        norm_eps=meta.positive("attention.layer_norm_rms_epsilon"),
        rope=rope_from_gguf(checkpoint, meta, head_size=head_size, default_theta=default_theta),
        windows=(None,) * layers,
        attention_scale=head_size**-0.5,
        tied=HEAD not in checkpoint.tensors,
    )


def window_of(meta: ConfigFields, spec: DecoderSpec) -> int | None:
    """The sliding window in tokens; None where there is none or no context outgrows it."""
    if meta.values.get("attention.sliding_window") in (None, 0):
        return None
    window = meta.count("attention.sliding_window")
    return window if window < spec.context_length else None


def refuse_window(meta: ConfigFields, spec: DecoderSpec) -> None:
    """Raise if the metadata asks for a window in a family whose GGUF has none."""
    window = window_of(meta, spec)
    if window is not None:
        raise meta.mismatch(f"a sliding window ({window}) is not supported for this architecture")


def has_bias(checkpoint: Checkpoint, part: str) -> bool:
    """Whether a linear layer has a bias; only the tensors say so."""
    return f"blk.0.{TENSOR_NAMES[part]}.bias" in checkpoint.tensors


def gguf_sources(spec: DecoderSpec) -> dict[str, WeightSource]:
    """Where llama.cpp's names put each canonical weight."""
    sources: dict[str, WeightSource] = {}
    for name in canonical_shapes(spec):
        where, part, kind = split_name(name)
        layer = "" if where is None else f"blk.{where}."
        sources[name] = WeightSource(f"{layer}{TENSOR_NAMES[part]}.{kind}")
    return sources
