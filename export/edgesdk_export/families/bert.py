"""BERT (arXiv:1810.04805), and RoBERTa and XLM-RoBERTa, which count positions otherwise.

MiniLM, e5, bge and gte are such models.
"""

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

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_OF_ROBERTA = {"vocab_size": 50_265, "pad_token_id": 1}
_TEMPLATES = {
    "embed": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "embed_norm": "embeddings.LayerNorm",
    "q": "encoder.layer.{i}.attention.self.query",
    "k": "encoder.layer.{i}.attention.self.key",
    "v": "encoder.layer.{i}.attention.self.value",
    "o": "encoder.layer.{i}.attention.output.dense",
    "attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "up": "encoder.layer.{i}.intermediate.dense",
    "down": "encoder.layer.{i}.output.dense",
    "mlp_norm": "encoder.layer.{i}.output.LayerNorm",
    "head.dense": "pooler.dense",
    "head.labels": "/classifier",
}
_HEAD_OF_ROBERTA = {"head.dense": "/classifier.dense", "head.labels": "/classifier.out_proj"}
_UNUSED = ("*pooler.*", "cls.*", "lm_head.*", "*.position_ids", "position_ids", "*.token_type_ids")


def from_config(checkpoint: Checkpoint) -> EncoderMapping:
    """Read config.json of `BertModel`, `RobertaModel`, `XLMRobertaModel`, or of one that scores."""
    family = str(checkpoint.config.get("model_type"))
    roberta = family != "bert"
    defaults = {**_DEFAULTS, **_OF_ROBERTA} if roberta else _DEFAULTS
    config = config_json.config_fields(checkpoint, defaults)
    config.refuse("position_embedding_type", "absolute")
    config.refuse("is_decoder")
    config.refuse("add_cross_attention")
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    rows = config.count("max_position_embeddings")
    # The row of padding, and those before it, are no token's.
    first = config.count("pad_token_id", limit=rows - 1) + 1 if roberta else 0
    spec = EncoderSpec(
        family=family,
        architecture=config_json.architecture_of(checkpoint, family),
        vocab_size=config.count("vocab_size"),
        hidden_size=config.count("hidden_size"),
        intermediate_size=config.count("intermediate_size"),
        layers=layers,
        heads=config.count("num_attention_heads"),
        context_length=rows - first,
        norm_eps=config.positive("layer_norm_eps"),
        windows=(None,) * layers,
        position_rows=rows,
        first_position=first,
        token_types=config.count("type_vocab_size"),
        activation=activation_of(config, "hidden_act"),
    )
    templates = {**_TEMPLATES, **(_HEAD_OF_ROBERTA if roberta else {})}
    if scores_pairs(checkpoint):
        require_one_label(checkpoint, config, f"{templates['head.labels'][1:]}.weight")
        spec = replace(spec, head=ScoreHead(1))
    start = "roberta." if roberta else "bert."
    wrapped = f"{start}{templates['embed']}.weight" in checkpoint.tensors
    return EncoderMapping(spec, named_sources(spec, templates, start if wrapped else ""), _UNUSED)
