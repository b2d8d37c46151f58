"""Read what the families' config.json files have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from edgesdk.bundle.spec import DecoderSpec, RopeSpec, canonical_shapes
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families.fields import MAX_LAYERS, ConfigFields
from edgesdk_export.families.mapping import WeightSource
from edgesdk_export.families.rope_settings import rope_from_config

HEAD = "lm_head.weight"
# Buffers that old checkpoints saved; they follow from the rope settings.
SETTLED = ("*.rotary_emb.inv_freq",)

_ACTIVATIONS: Mapping[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}

_TEMPLATES = {
    "embed": "embed_tokens",
    "input_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o": "self_attn.o_proj",
    "pre_mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "final_norm": "norm",
}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "pre_mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


def config_fields(
    checkpoint: Checkpoint, defaults: Mapping[str, Any], *, section: str | None = None
) -> ConfigFields:
    """The checkpoint's configuration, or one section of it, over the family's defaults
    (transformers leaves out what equals its own)."""
    top = ConfigFields(checkpoint.config, str(checkpoint.path / "config.json"))
    chosen = top if section is None else top.within(section)
    return ConfigFields({**defaults, **chosen.values}, chosen.where)


def architecture_of(checkpoint: Checkpoint, family: str) -> str:
    """The class name that config.json gives, else the family's name."""
    names = checkpoint.config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else family


def plain_spec(
    config: ConfigFields,
    *,
    family: str,
    architecture: str,
    activation_key: str = "hidden_act",
    rope: RopeSpec | None = None,
    partial_rotary: bool = False,
) -> DecoderSpec:
    """The spec of a decoder with pre-norms, no biases and full attention in every layer. Its rope
    is read from the configuration unless it is given; every family but gemma3 documents a theta
    of 10,000 where there is none. `partial_rotary`: see `rope_from_config`."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    head_size = config.count("head_dim", max(1, hidden // heads))
    activation = config.text(activation_key)
    if activation not in _ACTIVATIONS:
        raise config.mismatch(f"the activation '{activation}' is not supported")
    return DecoderSpec(
        family=family,
        architecture=architecture,
        vocab_size=config.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.count("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=config.count("num_key_value_heads", heads),
        head_size=head_size,
        context_length=config.count("max_position_embeddings"),
        norm_eps=config.positive("rms_norm_eps"),
        rope=rope
        or rope_from_config(
            config, head_size=head_size, default_theta=10_000.0, partial_rotary=partial_rotary
        ),
        windows=(None,) * layers,
        attention_scale=head_size**-0.5,
        tied=config.flag("tie_word_embeddings"),
        activation=_ACTIVATIONS[activation],
    )


def windows_by_layer_type(
    config: ConfigFields, spec: DecoderSpec, window: int | None, default: tuple[bool, ...]
) -> tuple[int | None, ...]:
    """The window of each layer, by `layer_types` where it is given, else by `default` (True:
    windowed). A window that no context outgrows is none."""
    slides = default
    if "layer_types" in config:
        kinds = config.texts("layer_types")
        unknown = set(kinds) - {"sliding_attention", "full_attention"}
        if unknown or len(kinds) != spec.layers:
            raise config.mismatch(
                f"layer_types names {len(kinds)} layers"
                + (f" and the unknown kinds {sorted(unknown)}" if unknown else "")
                + f"; there are {spec.layers} layers"
            )
        slides = tuple(kind == "sliding_attention" for kind in kinds)
    if any(slides) and window is None:
        raise config.mismatch("some layers slide, but there is no sliding_window")
    if window is not None and window >= spec.context_length:
        window = None
    return tuple(window if slide else None for slide in slides)


def upper_windows(config: ConfigFields, spec: DecoderSpec) -> tuple[int | None, ...]:
    """Qwen's rule: if windows are wanted at all, layers from `max_window_layers` on have one."""
    window = config.optional_count("sliding_window") if config.flag("use_sliding_window") else None
    first = config.values.get("max_window_layers")
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise config.mismatch(f"max_window_layers = {first!r} is not a number of layers")
    slides = tuple(window is not None and i >= first for i in range(spec.layers))
    return windows_by_layer_type(config, spec, window, slides)


def config_sources(
    spec: DecoderSpec, *, prefix: str = "model.", head: str = HEAD, norm_offset: float = 0.0
) -> dict[str, WeightSource]:
    """Where transformers' own names put each canonical weight. `norm_offset` is what the family
    adds to its stored norm gains."""
    templates = {**_TEMPLATES, **(_SANDWICH if spec.norm_placement == "sandwich" else {})}
    sources: dict[str, WeightSource] = {}
    for name in canonical_shapes(spec):
        if name == "head.weight":
            sources[name] = WeightSource(head)
            continue
        where, part, kind = split_name(name)
        layer = "" if where is None else f"layers.{where}."
        add = norm_offset if part.endswith("norm") else 0.0
        sources[name] = WeightSource(f"{prefix}{layer}{templates[part]}.{kind}", add=add)
    return sources


def split_name(canonical: str) -> tuple[int | None, str, str]:
    """A canonical name as layer number, part and kind: "layers.3.q.bias" is (3, "q", "bias")."""
    *at, part, kind = canonical.split(".")
    return (int(at[1]) if at else None), part, kind
