"""ModernBERT (arXiv:2412.13663): norms before each part, rope, windows in most layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgesdk.bundle.encoder_spec import EncoderSpec, ScoreHead
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import config_json
from edgesdk_export.families.encoder_fields import (
    EncoderMapping,
    activation_of,
    named_sources,
    require_one_label,
    scores_pairs,
)
from edgesdk_export.families.fields import MAX_LAYERS
from edgesdk_export.families.mapping import WeightSource
from edgesdk_export.families.rope_settings import stretched

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "classifier_pooling": "cls",
    "classifier_bias": False,
    "classifier_activation": "gelu",
}
_TEMPLATES = {
    "embed": "embeddings.tok_embeddings",
    "embed_norm": "embeddings.norm",
    "attention_norm": "layers.{i}.attn_norm",
    **dict.fromkeys(("q", "k", "v"), "layers.{i}.attn.Wqkv"),
    "o": "layers.{i}.attn.Wo",
    "mlp_norm": "layers.{i}.mlp_norm",
    **dict.fromkeys(("gate", "up"), "layers.{i}.mlp.Wi"),
    "down": "layers.{i}.mlp.Wo",
    "final_norm": "final_norm",
    "head.dense": "/head.dense",
    "head.norm": "/head.norm",
    "head.labels": "/classifier",
}
_UNUSED = ("head.*", "decoder.*")


def from_config(checkpoint: Checkpoint) -> EncoderMapping:
    """Read config.json of `ModernBertModel`, or of one that scores."""
    config = config_json.config_fields(checkpoint, _DEFAULTS)
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    inner, period = config.count("intermediate_size"), config.count("global_attn_every_n_layers")
    kinds = ["sliding_attention" if i % period else "full_attention" for i in range(layers)]
    kinds = list(config.texts("layer_types")) if "layer_types" in config else kinds
    if len(kinds) != layers or {*kinds} - {"sliding_attention", "full_attention"}:
        raise config.mismatch(f"layer_types does not name the {layers} layers' kinds")
    # Half of it lies on each side.
    window = config.count("local_attention") // 2
    parameters = config.within("rope_parameters")
    ropes = {}
    for kind, theta in (("full_attention", "global"), ("sliding_attention", "local")):
        found = parameters.within(kind)
        base = found.positive("rope_theta", config.positive(f"{theta}_rope_theta"))
        ropes[kind] = stretched(config, found, theta=base, head_size=hidden // heads)
    spec = EncoderSpec(
        family="modernbert",
        architecture=config_json.architecture_of(checkpoint, "modernbert"),
        vocab_size=config.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=inner,
        layers=layers,
        heads=heads,
        context_length=config.count("max_position_embeddings"),
        norm_eps=config.positive("norm_eps"),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        rope=ropes["full_attention"],
        local_rope=ropes["sliding_attention"],
        norm_placement="pre",
        norm_bias=config.flag("norm_bias"),
        attention_bias=config.flag("attention_bias"),
        mlp_bias=config.flag("mlp_bias"),
        gated=True,
        activation=activation_of(config, "hidden_activation"),
    )
    if scores_pairs(checkpoint):
        require_one_label(checkpoint, config, "classifier.weight")
        if activation_of(config, "classifier_activation") != "gelu":
            raise config.mismatch("the classifier's activation is not supported")
        pooling = config.text("classifier_pooling")
        head = ScoreHead(
            1,
            pooling="mean" if pooling == "mean" else "cls",
            activation="gelu",
            dense_bias=config.flag("classifier_bias"),
            normed=True,
        )
        spec = replace(spec, head=head)
    start = "model." if f"model.{_TEMPLATES['embed']}.weight" in checkpoint.tensors else ""
    sources = named_sources(spec, _TEMPLATES, start)
    for name in sources:
        part = name.split(".")[-2]
        rows = hidden if part in ("q", "k", "v") else inner
        place = {"q": 0, "k": 1, "v": 2, "gate": 0, "up": 1}.get(part)
        if place is not None:
            sources[name] = WeightSource(sources[name].tensor, place * rows, (place + 1) * rows)
    return EncoderMapping(spec, sources, _UNUSED)
