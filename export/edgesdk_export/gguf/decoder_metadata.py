"""Write the metadata of a decoder for a GGUF, and refuse what llama.cpp cannot compute.

Keys: llama.cpp's gguf-py/gguf/constants.py; what each architecture reads: its `load_hparams`.
Everything that the spec says and a file of its architecture cannot is refused here: llama.cpp
would load the file and compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

import numpy as np

from edgesdk.bundle.rope import frequencies
from edgesdk.bundle.spec import DecoderSpec, RopeSpec
from edgesdk.errors import ExportError
from edgesdk_export.families.family import GgufFamily
from edgesdk_export.families.registry import require_gguf_family
from edgesdk_export.families.rope_settings import (
    GGUF_FREQUENCIES,
    GGUF_LONG,
    GGUF_SHORT,
    yarn_attention_factor,
)
from edgesdk_export.gguf.container import Value
from edgesdk_export.weights import Float32

_CLOSE = 1e-6


def context_of(spec: DecoderSpec) -> int:
    """The context in tokens that llama.cpp computes rightly. Where it knows no windows for an
    architecture, as for llama (mistral) and phi3, it is that of the smallest window: up to there a
    window changes nothing."""
    if require_gguf_family(spec).window_period is not None:
        return spec.context_length
    return min(spec.context_length, *(window or spec.context_length for window in spec.windows))


def decoder_metadata(spec: DecoderSpec) -> dict[str, Value]:
    """The metadata that describe the decoder, in a fixed order, `general.architecture` first.

    Raises:
        ExportError: llama.cpp cannot compute this decoder.
    """
    family = require_gguf_family(spec)
    check_llama_cpp(spec)
    values: dict[str, Value] = {
        "vocab_size": spec.vocab_size,
        "context_length": context_of(spec),
        "embedding_length": spec.hidden_size,
        "block_count": spec.layers,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_size,
        "attention.value_length": spec.head_size,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        "rope.freq_base": spec.rope.theta,
        "rope.dimension_count": spec.rope.rotary_size,
        **_scaling(spec),
    }
    window = next((window for window in spec.windows if window is not None), None)
    if family.window_period is not None and window is not None:
        values["attention.sliding_window"] = window
    if spec.local_rope is not None:
        values["rope.freq_base_swa"] = spec.local_rope.theta
    if spec.attention_softcap is not None:
        values["attn_logit_softcapping"] = spec.attention_softcap
    if spec.logit_softcap is not None:
        values["final_logit_softcapping"] = spec.logit_softcap
    architecture = family.architectures[0]
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in values.items()},
    }


def rope_tensors(spec: DecoderSpec) -> Mapping[str, Float32]:
    """The tensors of frequency factors, one value for each frequency [rotary_size / 2]."""
    rope = spec.rope
    if rope.kind == "llama3":
        return {GGUF_FREQUENCIES: _llama3_factors(rope)}
    if _never_switches(rope):
        return {GGUF_FREQUENCIES: np.array(rope.long_factors, np.float32)}
    if rope.kind == "longrope":
        return {
            GGUF_LONG: np.array(rope.long_factors, np.float32),
            GGUF_SHORT: np.array(rope.short_factors, np.float32),
        }
    return {}


def _never_switches(rope: RopeSpec) -> bool:
    """One set of factors for all lengths, as a "llama3" rope has after a trip through GGUF."""
    same = rope.short_factors == rope.long_factors
    return rope.kind == "longrope" and same and rope.attention_factor == 1.0


def _scaling(spec: DecoderSpec) -> dict[str, Value]:
    rope = spec.rope
    if rope.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": rope.factor}
    if rope.kind == "yarn":
        values: dict[str, Value] = {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope.factor,
            "rope.scaling.original_context_length": rope.original_context or spec.context_length,
            "rope.scaling.yarn_beta_fast": rope.beta_fast,
            "rope.scaling.yarn_beta_slow": rope.beta_slow,
        }
        # llama.cpp multiplies the paper's factor by this one.
        rest = rope.attention_factor / yarn_attention_factor(rope.factor)
        if abs(rest - 1) > _CLOSE:
            values["rope.scaling.attn_factor"] = rest
        return values
    if rope.kind == "longrope" and not _never_switches(rope):
        return {
            "rope.scaling.original_context_length": rope.original_context or spec.context_length,
            "rope.scaling.attn_factor": rope.attention_factor,
        }
    return {}


def _llama3_factors(rope: RopeSpec) -> Float32:
    """Compute the divisor of each frequency (`_compute_llama3_parameters` of transformers): one for
    short waves, `factor` for long ones, and between them a blend."""
    frequencies = rope.theta ** -(
        np.arange(0, rope.rotary_size, 2, dtype=np.float64) / rope.rotary_size
    )
    waves = (rope.original_context or 0) * frequencies / (2 * math.pi)
    spread = rope.high_freq_factor - rope.low_freq_factor
    smooth = np.clip((waves - rope.low_freq_factor) / spread, 0.0, 1.0)
    return (1 / ((1 - smooth) / rope.factor + smooth)).astype(np.float32)


def check_llama_cpp(spec: DecoderSpec) -> None:
    """Refuse what llama.cpp does not compute for a decoder's family.

    Raises:
        ExportError: with what that is; or the family has no GGUF side.
    """
    family = require_gguf_family(spec)
    if spec.activation != family.activation:
        _refuse(spec, f"the activation {spec.activation}")
    for field in ("qkv_bias", "o_bias", "mlp_bias"):
        if getattr(spec, field) and field not in family.biases:
            _refuse(spec, field.replace("_", " "))
    if family.heads_fill_hidden and spec.heads * spec.head_size != spec.hidden_size:
        heads = f"{spec.heads} heads of {spec.head_size} values"
        _refuse(spec, f"{heads} over a hidden size of {spec.hidden_size}")
    if family.window_period is not None:
        slides = [(i + 1) % family.window_period != 0 for i in range(spec.layers)]
        windows = {w for w, slide in zip(spec.windows, slides, strict=True) if slide}
        others = {w for w, slide in zip(spec.windows, slides, strict=True) if not slide}
        if len(windows) > 1 or others - {None}:
            _refuse(spec, f"windows {spec.windows}")
        if family.needs_windows and None in windows:
            _refuse(spec, "layers without windows where windowed ones belong")
    if family.tied_only and not spec.tied:
        _refuse(spec, "a head of its own")
    if abs(spec.attention_scale / _attention_scale(spec, family) - 1) > _CLOSE:
        _refuse(spec, f"an attention scale of {spec.attention_scale:g}")
    if spec.attention_softcap is not None and not family.softcaps:
        _refuse(spec, "a soft cap on attention")
    if family.softcaps and (spec.attention_softcap is None or spec.logit_softcap is None):
        _refuse(spec, "no soft caps")
    _check_rope(spec, family)


def _check_rope(spec: DecoderSpec, family: GgufFamily) -> None:
    rope, local = spec.rope, spec.local_rope
    if rope.rotary_size != spec.head_size and not family.partial_rope:
        _refuse(spec, f"rotating {rope.rotary_size} of {spec.head_size} values of a head")
    if rope.kind == "yarn" and not _has_default_betas(rope):
        _refuse(
            spec,
            f"YaRN with a beta_fast of {rope.beta_fast:g} and a beta_slow of"
            f" {rope.beta_slow:g} (it always takes 32 and 1)",
        )
    factors = rope_tensors(spec)
    if factors and not family.frequency_factors:
        _refuse(spec, f"{rope.kind} rope")
    if GGUF_LONG in factors and not family.long_factors:
        _refuse(spec, f"{rope.kind} rope")
    if local is not None and (local.kind != "default" or local.rotary_size != spec.head_size):
        _refuse(spec, f"{local.kind} rope in windowed layers")


def _has_default_betas(rope: RopeSpec) -> bool:
    """Whether the frequencies are those of llama.cpp's betas. It writes down others and reads them,
    but computes with 32 and 1."""
    default = replace(rope, beta_fast=32.0, beta_slow=1.0)
    return np.allclose(
        frequencies(rope, long=False), frequencies(default, long=False), rtol=_CLOSE, atol=0
    )


def _attention_scale(spec: DecoderSpec, family: GgufFamily) -> float:
    if spec.layers == family.layers_of_27b:
        return float((spec.hidden_size / spec.heads) ** -0.5)
    return float(spec.head_size**-0.5)


def _refuse(spec: DecoderSpec, what: str) -> NoReturn:
    raise ExportError(
        f"llama.cpp does not compute {what} for the architecture {spec.family!r}.",
        hint="Export to ONNX instead.",
    )
