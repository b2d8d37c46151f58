"""Read checkpoints that another tool has quantized: find out how, and refuse what is not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesdk.errors import CheckpointError, ConfigMismatch
from edgesdk_export.checkpoint.checkpoint import read_json
from edgesdk_export.checkpoint.quantized_layouts import READERS, SCALES, Parts, QuantizedTensor
from edgesdk_export.checkpoint.safetensors_reader import SafetensorsTensor
from edgesdk_export.weights import LazyTensor

_PACKED = ("qweight", "weight_packed")
# Of activations and of the KV cache, which are not quantized here.
_OF_ACTIVATIONS = (
    *("input_scale", "input_zero_point", "input_global_scale", "input_scale_ub", "output_scale"),
    *("output_zero_point", "activation_scale", "qscale_act", "q_scale", "k_scale", "v_scale"),
    *("k_zero_point", "v_zero_point"),
)
_HINT = (
    "Export from the original checkpoint, or from a GGUF of it. Read are GPTQ, AWQ,"
    " compressed-tensors and FP8."
)


def dequantized(
    tensors: Mapping[str, SafetensorsTensor], config: Mapping[str, Any], folder: Path
) -> dict[str, LazyTensor]:
    """The tensors with each quantized matrix as one of floats, under its plain name.

    Raises:
        CheckpointError: they are quantized in a way that is not read; or not, though the
            configuration says so.
        ConfigMismatch: the parts of a matrix do not fit each other.
    """
    settings = _settings(config, folder)
    if settings is None:
        return _unchanged(tensors, folder)
    method = _method(settings)
    read = READERS.get(method)
    if read is None:
        raise CheckpointError(
            f"{folder}: the weights are already quantized with {method}, which is not read.",
            hint=_HINT,
        )
    _refuse_variants(method, settings, folder)
    modules: dict[str, dict[str, SafetensorsTensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules.setdefault(module, {})[part] = tensor
    found: dict[str, LazyTensor] = {}
    quantized = 0
    for module, parts in modules.items():
        start = f"{module}." if module else ""
        rest = {part: tensor for part, tensor in parts.items() if part not in _OF_ACTIVATIONS}
        if any(part in rest for part in (*_PACKED, *SCALES)):
            quantized += 1
            try:
                found[f"{start}weight"] = read(rest, settings)
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise _odd(f"{folder}: {start}weight", rest, error) from None
            rest = {part: tensor for part, tensor in rest.items() if part == "bias"}
        found.update({f"{start}{part}": tensor for part, tensor in rest.items()})
    if not quantized and settings.get("format") != "dense":
        raise CheckpointError(
            f"{folder}: its configuration says that it is quantized with {method}, but no tensor"
            " is packed or scaled.",
            hint="Remove quantization_config where the weights are plain; else get them again.",
        )
    return found


def notes_on(tensors: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    """What to say of an export of these tensors: that some had been quantized before."""
    kinds = {tensor.dtype for tensor in tensors.values() if isinstance(tensor, QuantizedTensor)}
    if not kinds:
        return ()
    return (
        f"Its matrices had been quantized before ({', '.join(sorted(kinds))}): what that cost is"
        " not in its quality, which is measured against them.",
    )


# Files beside config.json in which tools say how they quantized.
_SIDECARS = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


def _settings(config: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            value = place.get(key)
            if isinstance(value, Mapping):
                return dict(value)
            if value is not None:
                raise ConfigMismatch(
                    f"{folder / 'config.json'}: {key} = {value!r} is not an object.",
                    hint="Compare it with the configuration that the model was published with.",
                )
    for name, method in _SIDECARS.items():
        if (folder / name).is_file():
            return {"quant_method": method, **read_json(folder / name)}
    return None


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if not isinstance(method, str):
        return "an unnamed method"
    inner = settings.get("quantization")
    algorithm = inner.get("quant_algo") if isinstance(inner, Mapping) else None
    algorithm = algorithm or settings.get("quant_algo")
    return f"{method} {algorithm}" if isinstance(algorithm, str) else method


def _refuse_variants(method: str, settings: Mapping[str, Any], folder: Path) -> None:
    """Raise for a layout that is none of those above."""
    key, known = {
        "gptq": ("checkpoint_format", (None, "gptq", "gptq_v2")),
        "awq": ("version", (None, "gemm")),
        "compressed-tensors": (
            "format",
            (
                *(None, "dense", "pack-quantized", "int-quantized", "float-quantized"),
                *("naive-quantized", "mixed-precision"),
            ),
        ),
    }.get(method, ("", (None,)))
    value = settings.get(key)
    value = value.lower() if isinstance(value, str) else value
    if method == "gptq" and settings.get("is_marlin_format"):
        value = "marlin"
    if value not in known:
        raise CheckpointError(
            f"{folder}: the weights are quantized with {method} in the layout {value!r}, which is"
            " not read.",
            hint=_HINT,
        )


def _unchanged(tensors: Mapping[str, SafetensorsTensor], folder: Path) -> dict[str, LazyTensor]:
    for name in tensors:
        if name.endswith(".biases") and f"{name[:-7]}.scales" in tensors:
            raise CheckpointError(
                f"{folder}: the weights are already quantized with MLX ('{name}'), which is not"
                " read.",
                hint=_HINT,
            )
        if name.rpartition(".")[2] in (*_PACKED, "SCB", "absmax"):
            raise CheckpointError(
                f"{folder}: tensor '{name}' is packed, but neither config.json nor a file beside"
                " it says how.",
                hint=f"Download all of the checkpoint's .json files. {_HINT}",
            )
    return dict(tensors)


def _odd(what: str, parts: Parts, error: Exception) -> ConfigMismatch:
    shapes = ", ".join(f"{name} {t.dtype} {list(t.shape)}" for name, t in sorted(parts.items()))
    reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
    return ConfigMismatch(
        f"{what} cannot be dequantized: {reason}. Its parts: {shapes}.",
        hint="Compare the configuration with the one that the model was published with.",
    )
