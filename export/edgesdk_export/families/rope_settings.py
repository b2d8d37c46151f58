"""Read rotary embedding settings, as config.json and as GGUF metadata spell them."""

from __future__ import annotations

import math

from edgesdk.bundle.spec import RopeSpec
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families.fields import ConfigFields
from edgesdk_export.weights import read_whole

GGUF_FREQUENCIES = "rope_freqs.weight"
GGUF_SHORT = "rope_factors_short.weight"
GGUF_LONG = "rope_factors_long.weight"


def rope_from_config(
    config: ConfigFields, *, head_size: int, default_theta: float, partial_rotary: bool = False
) -> RopeSpec:
    """Rope of config.json.

    transformers 5 writes `rope_parameters`; 4 wrote `rope_theta` beside `rope_scaling`. A
    `rope_scaling` wins, as it does in transformers.

    Args:
        partial_rotary: whether the family reads `partial_rotary_factor`; the others ignore it.

    Raises:
        ConfigMismatch: a kind that `RopeSpec` cannot say, or a field is missing or absurd.
    """
    key = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    found = config.within(key)
    theta = found.positive("rope_theta", config.positive("rope_theta", default_theta))
    return stretched(
        config,
        found,
        theta=theta,
        head_size=head_size,
        original_beside=True,
        partial_rotary=partial_rotary,
    )


def refuse_rope_by_layer_type(config: ConfigFields) -> None:
    """Raise if each kind of layer has a rope of its own, in a family whose layers are of several
    kinds and share one."""
    found = config.within("rope_parameters")
    for layer_type in ("full_attention", "sliding_attention"):
        if layer_type in found:
            raise found.mismatch("rope parameters per layer type are not supported here")


def stretched(
    config: ConfigFields,
    found: ConfigFields,
    *,
    theta: float,
    head_size: int,
    original_beside: bool = False,
    partial_rotary: bool = False,
) -> RopeSpec:
    """The kind of rope that `found`, an object of transformers' rope parameters, asks for.

    Args:
        original_beside: whether `original_max_position_embeddings` may stand beside `found`, too.
        partial_rotary: see `rope_from_config`.
    """
    kind = found.text("rope_type", found.text("type", "default"))
    share = 1.0
    if partial_rotary or kind != "default":
        share = config.positive("partial_rotary_factor", 1.0)
        share = found.positive("partial_rotary_factor", share)
    if share != 1 and not partial_rotary:
        # transformers then stretches a part of the frequencies, and fails on the first token.
        raise found.mismatch(f"'{kind}' rope of {share} of a head is not one of this family")
    rotary_size = int(head_size * share)
    if not 2 <= rotary_size <= head_size or rotary_size % 2:
        raise found.mismatch(f"{rotary_size} of {head_size} values of a head would be rotated")
    if theta <= 1:
        raise found.mismatch(f"rope_theta = {theta} is not above 1")
    if kind == "default":
        return RopeSpec(theta, rotary_size)
    if kind == "linear":
        return RopeSpec(theta, rotary_size, "linear", factor=found.positive("factor"))

    context = config.count("max_position_embeddings")
    original = found.count("original_max_position_embeddings", context)
    if original_beside:
        original = config.count("original_max_position_embeddings", original)
    if kind == "llama3":
        return RopeSpec(
            theta,
            rotary_size,
            "llama3",
            factor=found.positive("factor"),
            original_context=original,
            low_freq_factor=found.positive("low_freq_factor"),
            high_freq_factor=found.positive("high_freq_factor"),
        )
    if kind == "yarn":
        if not found.flag("truncate", True):
            raise found.mismatch("yarn with truncate = false is not supported")
        factor = found.positive("factor", context / original)
        return RopeSpec(
            theta,
            rotary_size,
            "yarn",
            factor=factor,
            original_context=original,
            beta_fast=found.positive("beta_fast", 32.0),
            beta_slow=found.positive("beta_slow", 1.0),
            attention_factor=found.positive("attention_factor", _yarn_attention(found, factor)),
        )
    if kind == "longrope":
        factor = found.positive("factor", context / original)
        return RopeSpec(
            theta,
            rotary_size,
            "longrope",
            original_context=original,
            attention_factor=found.positive(
                "attention_factor", _longrope_attention(factor, original)
            ),
            short_factors=_per_frequency(found, "short_factor", rotary_size),
            long_factors=_per_frequency(found, "long_factor", rotary_size),
        )
    raise found.mismatch(f"the rope type '{kind}' is not supported")


def rope_from_gguf(
    checkpoint: Checkpoint, meta: ConfigFields, *, head_size: int, default_theta: float
) -> RopeSpec:
    """Rope of GGUF metadata (keys without the architecture), and of the tensors of frequency
    factors that llama.cpp's converter bakes "llama3" and "longrope" into.

    Raises:
        ConfigMismatch: a kind that `RopeSpec` cannot say, or a field is missing or absurd.
    """
    theta = meta.positive("rope.freq_base", default_theta)
    if theta <= 1:
        raise meta.mismatch(f"rope.freq_base = {theta} is not above 1")
    rotary_size = meta.count("rope.dimension_count", head_size)
    if not 2 <= rotary_size <= head_size or rotary_size % 2:
        raise meta.mismatch(f"{rotary_size} of {head_size} values of a head would be rotated")
    context = meta.count("context_length")
    original = meta.count("rope.scaling.original_context_length", context)
    # Older converters wrote `rope.scale_linear` for what is now type "linear" with a factor.
    meta.refuse("rope.scale_linear", 1.0)
    meta.refuse("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    meta.refuse("rope.scaling.yarn_attn_factor", 1.0)
    meta.refuse("rope.scaling.yarn_log_multiplier", 0.0)
    kind = meta.text("rope.scaling.type", "none")

    if GGUF_LONG in checkpoint.tensors and GGUF_SHORT in checkpoint.tensors:
        return RopeSpec(
            theta,
            rotary_size,
            "longrope",
            original_context=original,
            attention_factor=meta.positive("rope.scaling.attn_factor", 1.0),
            short_factors=_factors(checkpoint, meta, GGUF_SHORT, rotary_size),
            long_factors=_factors(checkpoint, meta, GGUF_LONG, rotary_size),
        )
    if GGUF_FREQUENCIES in checkpoint.tensors:
        if kind not in ("none", "linear") or meta.positive("rope.scaling.factor", 1.0) != 1.0:
            raise meta.mismatch(f"'{kind}' rope scaling besides {GGUF_FREQUENCIES}")
        # "llama3" reaches GGUF as one divisor per frequency: a longrope that never switches.
        factors = _factors(checkpoint, meta, GGUF_FREQUENCIES, rotary_size)
        return RopeSpec(
            theta,
            rotary_size,
            "longrope",
            original_context=context,
            short_factors=factors,
            long_factors=factors,
        )
    if kind == "none":
        return RopeSpec(theta, rotary_size)
    factor = meta.positive("rope.scaling.factor")
    if kind == "linear":
        return RopeSpec(theta, rotary_size, "linear", factor=factor)
    if kind == "yarn":
        # llama.cpp multiplies the paper's factor by this one, which transformers has not.
        scale = meta.positive("rope.scaling.attn_factor", 1.0)
        return RopeSpec(
            theta,
            rotary_size,
            "yarn",
            factor=factor,
            original_context=original,
            beta_fast=meta.positive("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=meta.positive("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=scale * yarn_attention_factor(factor),
        )
    raise meta.mismatch(f"the rope scaling '{kind}' is not supported")


def yarn_attention_factor(factor: float) -> float:
    """The paper's temperature for a context stretched `factor` times (arXiv:2309.00071)."""
    return _mscale(factor, 1.0)


def _longrope_attention(factor: float, original: int) -> float:
    """The paper's temperature for a context stretched `factor` times (arXiv:2402.13753)."""
    if factor <= 1.0 or original < 2:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _yarn_attention(found: ConfigFields, factor: float) -> float:
    numerator = found.optional_positive("mscale")
    denominator = found.optional_positive("mscale_all_dim")
    if numerator is None or denominator is None:
        return _mscale(factor, 1.0)
    return _mscale(factor, numerator) / _mscale(factor, denominator)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def _per_frequency(found: ConfigFields, key: str, rotary_size: int) -> tuple[float, ...]:
    factors = found.numbers(key)
    if len(factors) != rotary_size // 2:
        raise found.mismatch(f"{key} has {len(factors)} values; {rotary_size // 2} are needed")
    return factors


def _factors(
    checkpoint: Checkpoint, meta: ConfigFields, name: str, rotary_size: int
) -> tuple[float, ...]:
    tensor = checkpoint.tensors[name]
    if tensor.shape != (rotary_size // 2,):
        raise meta.mismatch(
            f"{name} has shape {list(tensor.shape)}; [{rotary_size // 2}] is needed"
        )
    return ConfigFields({name: read_whole(tensor).tolist()}, meta.where).numbers(name)
