"""config.json as transformers 5 writes it, so that transformers 4.57 reads the same model.

transformers 5 keeps everything about rope in `rope_parameters`; 4.57 does not know that field and
falls back to a theta of 10,000 without a word. Here both spellings end up in the file.
"""

from __future__ import annotations

from typing import Any

from edgesdk.errors import ConfigMismatch

Config = dict[str, Any]


def with_older_fields(config: Config) -> Config:
    """A copy of `config` that has 4.57's rope fields as well.

    Raises:
        ConfigMismatch: rope differs by layer type, which 4.57 has no common spelling for.
    """
    result = dict(config)
    rope = config.get("rope_parameters")
    if rope is None:
        return result
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ConfigMismatch(
            "config.json has one rope per layer type (rope_parameters), which the transformers"
            " version that optimum needs cannot read.",
            hint="This architecture cannot be exported through optimum.",
        )
    named = dict(rope)
    theta = named.pop("rope_theta", None)
    if theta is not None:
        # gpt_neox and its relatives call it rotary_emb_base.
        result["rope_theta"] = result["rotary_emb_base"] = theta
    partial = named.pop("partial_rotary_factor", None)
    if partial is not None:
        result["partial_rotary_factor"] = result["rotary_pct"] = partial
    kind = named.get("rope_type", "default")
    result["rope_scaling"] = None if kind == "default" else named
    return result


def expected_rope_theta(config: Config) -> float | None:
    """Theta of a plain rope, None where there is no rope or its frequencies are stretched."""
    rope = config.get("rope_parameters") or {}
    stretched = config.get("rope_scaling") or rope.get("rope_type", "default") != "default"
    theta = rope.get("rope_theta", config.get("rotary_emb_base", config.get("rope_theta")))
    return None if stretched or theta is None else float(theta)
