"""Tiny random checkpoints, one per family, with the family's odd features switched on.

Made with transformers, which is thereby the reference: `make_tiny` returns the very model that it
saved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCAB_SIZE = 320
END, START = "<|end|>", "<|start|>"

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": 257,
    "eos_token_id": 256,
}

# By name: transformers' model type, and what makes it odd. Windows are far below the lengths that
# tests run, and phi3's long factors set in past 32 tokens.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "llama-llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral": ("mistral", {"sliding_window": 8}),
    "ministral": (
        "ministral",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windowed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen2-yarn": (
        "qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 32,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 32,
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "linear",
                    "rope_theta": 1_000_000.0,
                    "factor": 8.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
    ),
    "phi3": ("phi3", {"sliding_window": 24}),
    "phi3-longrope": (
        "phi3",
        {
            "hidden_size": 128,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
                "original_max_position_embeddings": 32,
            },
        },
    ),
}


def make_tiny(variant: str, folder: Path, **overrides: Any) -> Any:
    """Save a tiny random model and a byte-level tokenizer; the same one every time.

    Args:
        variant: a name of `VARIANTS`.
        folder: where `config.json`, `model.safetensors` and `tokenizer.json` go.
        overrides: fields of transformers' configuration; `max_shard_size` ("50KB") splits the
            weights, and `dtype` (a torch type) is what they are stored in.

    Returns:
        The transformers model, in float32 and eval mode, with exactly the saved weights.
    """
    shard_size = overrides.pop("max_shard_size", "5GB")
    dtype = overrides.pop("dtype", torch.float32)
    model_type, odd = VARIANTS[variant]
    config = CONFIG_MAPPING[model_type](**{**_COMMON, **odd, **overrides})
    torch.manual_seed(len(variant) + config.vocab_size)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # transformers starts gains at one (gemma: zero) and biases at zero, which would hide
            # a weight that was mixed up or left out.
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * (0.3 if "norm" in name else 0.5))
        model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    _save_tokenizer(folder)
    return model.to(torch.float32)


def _save_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, START])
    tokenizer.add_tokens([f"<extra{i}>" for i in range(VOCAB_SIZE - len(alphabet) - 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>{% endif %}"
    )
    settings = {"bos_token": START, "eos_token": END, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "chat_template": template})
    )
