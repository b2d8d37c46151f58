"""Read a LoRA that PEFT saved: `adapter_config.json` and `adapter_model.safetensors`.

The change of a matrix is lora_B @ lora_A times a scale: alpha / rank, or alpha / sqrt(rank) with
`use_rslora` (Kalajdzievski, 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgesdk.bundle.opening import hash_file
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import CheckpointError, ConfigMismatch, DamagedCheckpoint
from edgesdk_export.adapters.low_rank import LowRankChange, LowRankWeights, check_fits
from edgesdk_export.checkpoint.checkpoint import read_json
from edgesdk_export.checkpoint.safetensors_reader import SafetensorsTensor, read_safetensors
from edgesdk_export.checkpoint.weight_files import ADAPTER_CONFIG
from edgesdk_export.weights import Float32, read_whole, require_finite

WEIGHTS_NAME = "adapter_model.safetensors"
_MERGE = (
    "Merge it with peft instead, and export the result: model.merge_and_unload()"
    ".save_pretrained(FOLDER)."
)
# What changes nothing of the saved function, or is read below.
_KNOWN = (
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "eva_config"),
    *("exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern"),
    *("layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type"),
    *("peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config"),
    *("target_modules", "task_type", "use_rslora"),
)
# Others (PiSSA, OLoRA, CorDA, LoftQ) change the base model's own weights as well.
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_ADVICE = {
    "use_dora": "DoRA also scales each column, which no adapter file holds. " + _MERGE,
    "modules_to_save": "These modules are trained whole. Train without them, or merge. " + _MERGE,
    "bias": "Trained biases are no low-rank weights. Train with bias='none'. " + _MERGE,
    "lora_bias": "Train with lora_bias=False. " + _MERGE,
    "trainable_token_indices": "Embeddings are not adapted. Train without them. " + _MERGE,
    "layer_replication": "The model has other layers than its base. " + _MERGE,
}
_MODULES = {
    "self_attn.q_proj": ("q",),
    "self_attn.k_proj": ("k",),
    "self_attn.v_proj": ("v",),
    "self_attn.qkv_proj": ("q", "k", "v"),
    "self_attn.o_proj": ("o",),
    "mlp.gate_proj": ("gate",),
    "mlp.up_proj": ("up",),
    "mlp.gate_up_proj": ("gate", "up"),
    "mlp.down_proj": ("down",),
}
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER = re.compile(r"(?:.+\.)?layers\.(?P<layer>\d+)\.(?P<module>(?:self_attn|mlp)\.\w+)")


def read_peft_folder(folder: Path, spec: DecoderSpec, *, where: str) -> LowRankWeights:
    """Read a LoRA for the decoder of `spec`.

    Args:
        where: what the decoder is of, for errors.

    Raises:
        CheckpointError: it is no LoRA, or one with a setting that adapters do not have.
        ConfigMismatch: its layers or shapes are not the decoder's, or not its own settings'.
        DamagedCheckpoint: a file is missing, cut, or holds a value that is no number.
    """
    config_path = folder / ADAPTER_CONFIG
    if not config_path.is_file():
        raise CheckpointError(
            f"{folder} is no PEFT folder: it has no {ADAPTER_CONFIG}.",
            hint="Give the folder that peft's save_pretrained wrote.",
        )
    config = read_json(config_path)
    _check_config(config, config_path)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise DamagedCheckpoint(
            f"{path} is missing.", hint="Save the adapter with peft's save_pretrained."
        )
    changes: dict[str, LowRankChange] = {}
    for module, (down, up) in sorted(_pairs(read_safetensors(path), path).items()):
        _check_rank(module, down, up, config, config_path)
        scaled = up * np.float32(_scale(module, len(down), config))
        for part, rows in _parts(module, scaled, spec, path):
            changes[part] = LowRankChange(down, np.ascontiguousarray(rows))
    if not changes:
        raise ConfigMismatch(
            f"{path} has no low-rank weights.", hint="Save the adapter with peft again."
        )
    weights = LowRankWeights(changes, hash_file(path))
    check_fits(weights, spec, where)
    return weights


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: {kind} adapters are not supported, only LORA.", hint=_MERGE)
    if config.get("init_lora_weights") not in _INITS:
        raise CheckpointError(
            f"{path}: init_lora_weights = {config['init_lora_weights']!r} also changed the base"
            " model's own weights.",
            hint="Save it with path_initial_model_for_weight_conversion, or merge. " + _MERGE,
        )
    for name, value in config.items():
        # An empty dict or list and "none" stand for what is not used.
        unused = not value or (name == "bias" and value == "none")
        if name in _ADVICE and not unused:
            raise CheckpointError(
                f"{path}: {name} = {value!r} is not supported.", hint=_ADVICE[name]
            )
        if name not in _KNOWN and not unused:
            raise CheckpointError(
                f"{path}: the setting {name} = {value!r} is not supported.", hint=_MERGE
            )


def _pairs(
    tensors: Mapping[str, SafetensorsTensor], path: Path
) -> dict[str, tuple[Float32, Float32]]:
    """lora_A and lora_B as float32, by module."""
    sides: dict[str, dict[str, Float32]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{path}: the tensor {name} is no low-rank weight of a linear layer.",
                hint="Train with the linear layers as target modules, and nothing else. " + _MERGE,
            )
        if len(tensor.shape) != 2:
            raise ConfigMismatch(f"{path}: the tensor {name} has the shape {tensor.shape}.")
        values = require_finite(name, read_whole(tensor))
        sides.setdefault(match["module"], {})[match["side"]] = values
    for module, found in sides.items():
        if len(found) < 2:
            raise DamagedCheckpoint(
                f"{path}: {module} has lora_{min(found)} only.",
                hint="Save the adapter with peft again.",
            )
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _check_rank(
    module: str, down: Float32, up: Float32, config: Mapping[str, Any], path: Path
) -> None:
    rank = _pattern(config.get("rank_pattern"), module, config.get("r"))
    if not len(down) == up.shape[1] == rank:
        raise ConfigMismatch(
            f"{module} has the ranks {len(down)} and {up.shape[1]}; {path} says {rank}.",
            hint="Give the two files that peft saved together.",
        )


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = float(_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha")))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value for a module, as PEFT's `get_pattern_key` finds it: the first key that its name
    ends with."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _parts(
    module: str, up: Float32, spec: DecoderSpec, path: Path
) -> Iterator[tuple[str, Float32]]:
    """The canonical linear layers of a module, and their rows."""
    if module == "lm_head" or module.endswith(".lm_head"):
        yield "head", up
        return
    match = _LAYER.fullmatch(module)
    parts = None if match is None else _MODULES.get(match["module"])
    if match is None or parts is None:
        raise CheckpointError(
            f"{path}: {module} cannot be adapted.",
            hint=f"The target modules may be {', '.join(n.partition('.')[2] for n in _MODULES)}"
            " and lm_head. " + _MERGE,
        )
    heads, inner = spec.head_size, spec.intermediate_size
    sizes = {"q": spec.heads * heads, "k": spec.kv_heads * heads, "v": spec.kv_heads * heads}
    start = 0
    for part in parts:
        size = len(up) if len(parts) == 1 else sizes.get(part, inner)
        yield f"layers.{match['layer']}.{part}", up[start : start + size]
        start += size
    if start != len(up):
        raise ConfigMismatch(
            f"{path}: {module} has {len(up)} rows; the model's has {start}.",
            hint="Give the bundle of the model that the adapter was trained on.",
        )
