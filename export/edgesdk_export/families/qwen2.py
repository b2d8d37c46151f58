"""Qwen2 and Qwen2.5: biased query, key and value; windows in the upper layers if asked for
(arXiv:2407.10671)."""

from __future__ import annotations

from dataclasses import replace

from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import config_json, gguf_metadata
from edgesdk_export.families.fields import Fields
from edgesdk_export.families.reading import Reading
from edgesdk_export.spec import DecoderSpec

_DEFAULTS = {
    "hidden_act": "silu",
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


def from_config(checkpoint: Checkpoint) -> Reading:
    """Read config.json of `Qwen2ForCausalLM`."""
    config = config_json.config_fields(checkpoint, _DEFAULTS)
    architecture = config_json.architecture_of(checkpoint, "qwen2")
    spec = config_json.plain_spec(config, family="qwen2", architecture=architecture)
    spec = replace(spec, qkv_bias=True, windows=upper_windows(config, spec))
    sources = config_json.config_sources(spec)
    return Reading(spec, sources, config_json.HEAD, config_json.SETTLED)


def from_gguf(checkpoint: Checkpoint) -> Reading:
    """Read the GGUF architecture "qwen2"."""
    meta = gguf_metadata.gguf_fields(checkpoint)
    spec = gguf_metadata.plain_spec(checkpoint, meta, family="qwen2")
    gguf_metadata.refuse_window(meta, spec)
    spec = replace(spec, qkv_bias=True)
    return Reading(
        spec, gguf_metadata.gguf_sources(spec), gguf_metadata.HEAD, gguf_metadata.SETTLED
    )


def upper_windows(config: Fields, spec: DecoderSpec) -> tuple[int | None, ...]:
    """Windows of layers from `max_window_layers` on; qwen3 has the same rule."""
    window = config.optional_count("sliding_window") if config.flag("use_sliding_window") else None
    first = config.values.get("max_window_layers")
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise config.mismatch(f"max_window_layers = {first!r} is not a number of layers")
    slides = tuple(window is not None and i >= first for i in range(spec.layers))
    return config_json.windows_by_layer_type(config, spec, window, slides)
