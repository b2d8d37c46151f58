"""Say whether optimum is a way out for a checkpoint that no family can read."""

from __future__ import annotations

# The decoders in optimum-onnx 0.1.0's model_configs.py, without those whose code is not in
# transformers itself. It reads folders with a config.json, no GGUF.
_EXPORTED = frozenset(
    (
        *("arcee", "bloom", "codegen", "cohere", "deepseek_v3", "falcon", "gemma", "gemma2"),
        *("gemma3_text", "glm", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj"),
        *("granite", "helium", "llama", "mistral", "mpt", "nemotron", "olmo", "olmo2", "opt"),
        *("phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm"),
    )
)


def optimum_hint(model_type: object) -> str | None:
    """What to do about a checkpoint of this `model_type` in config.json; None = optimum does not
    know it, or it came without one."""
    if isinstance(model_type, str) and model_type in _EXPORTED:
        return "Try '--via optimum'."
    return None
