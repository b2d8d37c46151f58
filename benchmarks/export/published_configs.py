"""Shapes of published checkpoints, from their public config.json files.

Only what a decoder computes with; what a name leaves out is the default of transformers' class.
`shrunk` makes such a shape small: fewer layers, heads in the same proportion, narrow matrices, and
a window or an original context that a short text gets past. Head sizes, rope, norms, caps, scales,
biases and ties stay.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

# Tokens of a shrunk window, and of a shrunk longrope's original context: llama.cpp makes contexts
# of no less than 256.
WINDOW, ORIGINAL = 32, 256
VOCAB = 320


def _llama3(factor: float) -> Fields:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _heads(hidden: int, heads: int, kv_heads: int, **more: Any) -> Fields:
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


def _llama(hidden: int, heads: int, kv_heads: int, theta: float, **more: Any) -> Fields:
    more = {"rms_norm_eps": 1e-5, **more}
    return {"model_type": "llama", **_heads(hidden, heads, kv_heads, rope_theta=theta, **more)}


def _mistral(hidden: int, theta: float, window: int | None, **more: Any) -> Fields:
    sizes = _heads(hidden, 32, 8, rope_theta=theta, sliding_window=window, rms_norm_eps=1e-5)
    return {"model_type": "mistral", **sizes, **more}


def _qwen2(hidden: int, heads: int, kv_heads: int, **more: Any) -> Fields:
    more = {"rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 32_768, **more}
    return {"model_type": "qwen2", **_heads(hidden, heads, kv_heads, **more)}


def _qwen3(hidden: int, heads: int, **more: Any) -> Fields:
    more = {"rope_theta": 1e6, "head_dim": 128, **more}
    return {"model_type": "qwen3", **_heads(hidden, heads, 8, **more)}


def _gemma3(hidden: int, heads: int, kv_heads: int, window: int, **more: Any) -> Fields:
    more = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": window, **more}
    return {"model_type": "gemma3_text", **_heads(hidden, heads, kv_heads, **more)}


def _phi3(hidden: int, heads: int, kv_heads: int, **more: Any) -> Fields:
    return {"model_type": "phi3", **_heads(hidden, heads, kv_heads, **more)}


# Stretched from a few thousand tokens to 128 Ki, with factors that grow as the published ones do;
# `shrunk` gives them as many as the head has.
_LONGROPE: Fields = {"type": "longrope", "short_factor": [1.0, 2.8], "long_factor": [1.0, 64.0]}
_TIED: Fields = {"tie_word_embeddings": True}

PUBLISHED: dict[str, Fields] = {
    "Llama-2-7B": _llama(4096, 32, 32, 1e4),
    "Llama-3-8B": _llama(4096, 32, 8, 5e5),
    "Llama-3.1-8B": _llama(4096, 32, 8, 5e5, rope_scaling=_llama3(8.0)),
    "Llama-3.2-1B": _llama(2048, 32, 8, 5e5, head_dim=64, rope_scaling=_llama3(32.0), **_TIED),
    "Llama-3.2-3B": _llama(3072, 24, 8, 5e5, head_dim=128, rope_scaling=_llama3(32.0), **_TIED),
    "CodeLlama-7B": _llama(4096, 32, 32, 1e6),
    "TinyLlama-1.1B": _llama(2048, 32, 4, 1e4),
    "Sheared-LLaMA-1.3B": _llama(2048, 16, 16, 1e4),
    "SmolLM2-135M": _llama(576, 9, 3, 1e5, **_TIED),
    "SmolLM2-360M": _llama(960, 15, 5, 1e5, **_TIED),
    "SmolLM2-1.7B": _llama(2048, 32, 32, 1.3e5, **_TIED),
    "Yi-1.5-6B": _llama(4096, 32, 4, 5e6, rms_norm_eps=1e-6),
    "DeepSeek-LLM-7B": _llama(4096, 32, 32, 1e4, rms_norm_eps=1e-6),
    "DeepSeek-Coder-1.3B": _llama(
        2048, 16, 16, 1e5, rms_norm_eps=1e-6, rope_scaling={"type": "linear", "factor": 4.0}
    ),
    "Falcon3-1B": _llama(2048, 8, 4, 1_000_042.0, head_dim=256, rms_norm_eps=1e-6),
    "H2O-Danube3-4B": _llama(3840, 32, 8, 5e5, head_dim=120),
    "H2O-Danube-1.8B": _mistral(2560, 1e4, 4096),
    "Mistral-7B-v0.1": _mistral(4096, 1e4, 4096),
    "Mistral-7B-v0.3": _mistral(4096, 1e6, None),
    "Mistral-Nemo-12B": _mistral(5120, 1e6, None, head_dim=128),
    "Qwen1.5-0.5B": _qwen2(1024, 16, 16, **_TIED),
    "Qwen2-0.5B": _qwen2(896, 14, 2, **_TIED),
    "Qwen2-1.5B": _qwen2(1536, 12, 2, **_TIED),
    "Qwen2-7B": _qwen2(3584, 28, 4),
    "Qwen2.5-0.5B": _qwen2(896, 14, 2, **_TIED),
    "Qwen2.5-1.5B": _qwen2(1536, 12, 2, **_TIED),
    "Qwen2.5-3B": _qwen2(2048, 16, 2, **_TIED),
    "Qwen2.5-7B with YaRN": _qwen2(
        3584, 28, 4,
        rope_scaling={
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768,
        },
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": _qwen2(1536, 12, 2, rope_theta=1e4),
    "Qwen3-0.6B": _qwen3(1024, 16, **_TIED),
    "Qwen3-1.7B": _qwen3(2048, 16, **_TIED),
    "Qwen3-4B": _qwen3(2560, 32, **_TIED),
    "Qwen3-4B-2507": _qwen3(2560, 32, rope_theta=5e6, **_TIED),
    "Qwen3-8B": _qwen3(4096, 32),
    "Gemma-2-2B": {
        "model_type": "gemma2", **_heads(2304, 8, 4, head_dim=256, query_pre_attn_scalar=256),
    },
    "Gemma-2-9B": {
        "model_type": "gemma2", **_heads(3584, 16, 8, head_dim=256, query_pre_attn_scalar=256),
    },
    "Gemma-3-270M": _gemma3(640, 4, 1, 512),
    "Gemma-3-1B": _gemma3(1152, 4, 1, 512),
    "Gemma-3-4B, text": _gemma3(
        2560, 8, 4, 1024, rope_scaling={"rope_type": "linear", "factor": 8.0}
    ),
    "Phi-3-mini-4k": _phi3(3072, 32, 32, sliding_window=2047),
    "Phi-3-mini-128k": _phi3(3072, 32, 32, sliding_window=262_144, rope_scaling=_LONGROPE),
    "Phi-3.5-mini": _phi3(3072, 32, 32, sliding_window=262_144, rope_scaling=_LONGROPE),
    "Phi-4-mini": _phi3(
        3072, 24, 8, partial_rotary_factor=0.75, rope_scaling=_LONGROPE, **_TIED
    ),
    "Phi-4-14B": _phi3(5120, 40, 10, rope_theta=250_000.0),
}  # fmt: skip


def shrunk(name: str) -> Fields:
    """A configuration for transformers' class: the published shape, small. Layers are as many as
    show every kind of them: 7 of Gemma 3, 2 of the others."""
    fields = dict(PUBLISHED[name])
    heads, kv_heads = fields["num_attention_heads"], fields["num_key_value_heads"]
    size = fields.get("head_dim") or fields["hidden_size"] // heads
    small_kv = 2 if heads // kv_heads < 4 else 1
    small = small_kv * (heads // kv_heads)
    fields.update(
        vocab_size=VOCAB,
        num_attention_heads=small,
        num_key_value_heads=small_kv,
        hidden_size=small * (16 if "head_dim" in fields else size),
        intermediate_size=160,
        num_hidden_layers=7 if fields["model_type"] == "gemma3_text" else 2,
        max_position_embeddings=512,
        pad_token_id=None,
        bos_token_id=257,
        eos_token_id=256,
    )
    window = fields.get("sliding_window", 4096 if fields["model_type"] == "gemma2" else None)
    if fields["model_type"] == "qwen2" or (window or 0) > 131_072:
        # Not switched on, and longer than the whole context.
        window = None
    if fields["model_type"] != "qwen2":
        fields["sliding_window"] = window and WINDOW
    scaling = fields.get("rope_scaling")
    if scaling and scaling.get("type") == "longrope":
        count = int(size * fields.get("partial_rotary_factor", 1.0)) // 2
        fields["rope_scaling"] = {
            **scaling,
            **{
                key: [first + (last - first) * i / (count - 1) for i in range(count)]
                for key, (first, last) in (
                    ("short_factor", scaling["short_factor"]),
                    ("long_factor", scaling["long_factor"]),
                )
            },
            "original_max_position_embeddings": ORIGINAL,
        }
        fields["original_max_position_embeddings"] = ORIGINAL
    return fields
