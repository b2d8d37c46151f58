"""Tiny random encoders, one per family, with a tokenizer that puts special tokens around a text.

Made with transformers, which is thereby the reference.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSequenceClassification

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?![]"
VOCAB_SIZE = len(SPECIAL) + 2 * len(_LETTERS)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}

# By name: transformers' model type, and what makes it odd. ModernBERT's windows are far below the
# lengths that tests run.
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert-tanh": ("bert", {"hidden_act": "gelu_new", "type_vocab_size": 3}),
    "roberta": ("roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    "nomic_bert": ("nomic_bert", {}),
    "modernbert": ("modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "modernbert-biased": (
        "modernbert",
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "local_attention": 10},
    ),
}


def make_encoder(name: str, folder: Path, *, scores: bool = False, **changes: Any) -> Any:
    """Save a checkpoint with its tokenizer, and return transformers' model of it."""
    kind, odd = ENCODERS[name]
    labels = {"num_labels": 1} if scores else {}
    config = CONFIG_MAPPING[kind](**{**_COMMON, **odd, **labels, **changes})
    torch.manual_seed(sum(map(ord, name)))
    make = AutoModelForSequenceClassification if scores else AutoModel
    model = make.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Gains of one and biases of zero would hide an exchange of them.
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    word_piece_tokenizer().save(str(folder / "tokenizer.json"))
    return model


def word_piece_tokenizer() -> Tokenizer:
    """A tokenizer of letters, as BERT's: with [CLS] and [SEP] around a text, and [SEP] between
    two."""
    entries = [*SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    tokenizer = Tokenizer(
        models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def sentence_transformers_files(
    folder: Path, *, pooling: str = "mean", normalize: bool = True, **settings: Any
) -> None:
    """Write the files that say how vectors are made, as sentence-transformers 2 to 5 did.

    Args:
        settings: of config_sentence_transformers.json, such as `prompts`.
    """
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if i == 0 else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    flags = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken", "max": "max_tokens"}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    config = {f"pooling_mode_{flag}": mode == pooling for mode, flag in flags.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
