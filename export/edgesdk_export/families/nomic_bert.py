"""nomic-bert (arXiv:2402.01613): BERT with rope, a gated MLP, and no biases but the norms'."""

from __future__ import annotations

from typing import Any

from edgesdk.bundle.encoder_spec import EncoderSpec
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import config_json
from edgesdk_export.families.encoder_fields import EncoderMapping, activation_of, named_sources
from edgesdk_export.families.fields import MAX_LAYERS
from edgesdk_export.families.mapping import WeightSource
from edgesdk_export.families.rope_settings import rope_from_config

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30_528,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
_TEMPLATES = {
    "embed": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "q": "layers.{i}.self_attn.q_proj",
    "k": "layers.{i}.self_attn.k_proj",
    "v": "layers.{i}.self_attn.v_proj",
    "o": "layers.{i}.self_attn.o_proj",
    "attention_norm": "layers.{i}.post_attention_layernorm",
    "gate": "layers.{i}.mlp.gate_proj",
    "up": "layers.{i}.mlp.up_proj",
    "down": "layers.{i}.mlp.down_proj",
    "mlp_norm": "layers.{i}.post_mlp_layernorm",
}
# As the model was published.
_FIRST_TEMPLATES = {
    **_TEMPLATES,
    "embed_norm": "emb_ln",
    **dict.fromkeys(("q", "k", "v"), "encoder.layers.{i}.attn.Wqkv"),
    "o": "encoder.layers.{i}.attn.out_proj",
    "attention_norm": "encoder.layers.{i}.norm1",
    "gate": "encoder.layers.{i}.mlp.fc12",
    "up": "encoder.layers.{i}.mlp.fc11",
    "down": "encoder.layers.{i}.mlp.fc2",
    "mlp_norm": "encoder.layers.{i}.norm2",
}
_UNUSED = ("pooler.*", "cls.*", "*.inv_freq")


def from_config(checkpoint: Checkpoint) -> EncoderMapping:
    """Read config.json of `NomicBertModel`."""
    config = config_json.config_fields(checkpoint, _DEFAULTS)
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    config.refuse("head_dim", hidden // heads)
    spec = EncoderSpec(
        family="nomic_bert",
        architecture=config_json.architecture_of(checkpoint, "nomic_bert"),
        vocab_size=config.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.count("intermediate_size"),
        layers=layers,
        heads=heads,
        context_length=config.count("max_position_embeddings"),
        norm_eps=config.positive("layer_norm_eps"),
        windows=(None,) * layers,
        token_types=config.count("type_vocab_size"),
        rope=rope_from_config(config, head_size=hidden // heads, default_theta=1000.0),
        attention_bias=False,
        mlp_bias=False,
        gated=True,
        activation=activation_of(config, "hidden_act"),
    )
    first = "emb_ln.weight" in checkpoint.tensors
    sources = named_sources(spec, _FIRST_TEMPLATES if first else _TEMPLATES, "")
    if first:
        for name in sources:
            part = name.split(".")[-2]
            if part in ("q", "k", "v"):
                start = "qkv".index(part) * hidden
                sources[name] = WeightSource(sources[name].tensor, start, start + hidden)
    return EncoderMapping(spec, sources, _UNUSED)
