"""Find the weight files of a folder as transformers finds them, and say what a folder without any
holds instead."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgesdk.errors import CheckpointError, DamagedCheckpoint
from edgesdk_export.checkpoint.checkpoint import read_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
# Files of weights in other layouts, by what they are called.
_ADAPTERS = ("adapter_model.*", "adapters.safetensors", "pytorch_lora_weights.*")
_CONSOLIDATED = ("consolidated*.safetensors", "consolidated*.pth")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OTHER_FRAMEWORKS = ("*.h5", "*.msgpack", "*.onnx", "*.mlmodel", "*.tflite")
_AGAIN = "Download the checkpoint again."


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold a model, in name order; none where there are none.

    A whole file counts, whatever an index beside it says. Shards without an index count where all
    of them are there, and so does a single file of another name.

    Raises:
        DamagedCheckpoint: the index names no files of the folder, or a shard is missing.
    """
    if (folder / SINGLE_NAME).is_file():
        return (folder / SINGLE_NAME,)
    if (folder / INDEX_NAME).is_file():
        names = sorted(set(weight_map(folder).values()))
        return tuple(folder / name for name in names)
    others = {file for shape in (*_ADAPTERS, *_CONSOLIDATED) for file in folder.glob(shape)}
    files = sorted(set(folder.glob("*.safetensors")) - others)
    shards = [(file, match) for file in files if (match := _SHARD.fullmatch(file.name))]
    if shards:
        return _complete([file for file, _ in shards], [match for _, match in shards])
    return tuple(files) if len(files) == 1 else ()


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> the file that the folder's index places it in.

    Raises:
        DamagedCheckpoint: it is no such map.
    """
    path = folder / INDEX_NAME
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict) or not all(_is_plain(name) for name in placed.values()):
        raise DamagedCheckpoint(
            f"{path}: 'weight_map' does not map tensors to files of the folder.", hint=_AGAIN
        )
    return placed


def refuse_adapter(folder: Path, *, beside_weights: bool) -> None:
    """Raise if the folder holds a LoRA adapter, alone or beside the model that it changes."""
    config = folder / ADAPTER_CONFIG
    files = sorted(file for shape in _ADAPTERS for file in folder.glob(shape))
    if not config.is_file() and not files:
        return
    settings: dict[str, Any] = read_json(config) if config.is_file() else {}
    kind = settings.get("peft_type", "LORA")
    base = settings.get("base_model_name_or_path") or "a base model that it does not name"
    merge = (
        "Export the base model with --merge-adapter FOLDER, or make an adapter for its bundle:"
        " edgesdk export --adapter FOLDER BUNDLE."
    )
    if not beside_weights:
        raise CheckpointError(
            f"{folder} is a {kind} adapter of {base}, and no model by itself.", hint=merge
        )
    raise CheckpointError(
        f"{folder} holds a {kind} adapter ({(files or [config])[0].name}) beside a model; an"
        " export of the model alone would leave it out.",
        hint=f"{merge} To export the model without it, move the adapter's files elsewhere.",
    )


def nothing_to_open(folder: Path) -> CheckpointError:
    """The error for a folder in which no weights can be read: what is there, and what to do."""
    if _holds(folder, _CONSOLIDATED):
        return CheckpointError(
            f"{folder} holds consolidated weights, in their maker's own layout, only.",
            hint="Download the files of the transformers layout, too: config.json and"
            " model*.safetensors; or convert it with transformers' conversion script.",
        )
    nothing = f"{folder} holds neither {SINGLE_NAME} nor {INDEX_NAME} nor a .gguf file."
    if _holds(folder, _PICKLED):
        return CheckpointError(
            nothing,
            hint="Pickled weights (.bin, .pt) are not read; save the model as safetensors:"
            " AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT).",
        )
    if files := _holds(folder, _OTHER_FRAMEWORKS):
        return CheckpointError(
            nothing, hint=f"{files[0].name} is not read; get the model's safetensors."
        )
    if files := _holds(folder, ("*.safetensors",)):
        names = ", ".join(file.name for file in files)
        return CheckpointError(
            f"{folder} holds several safetensors files and no {INDEX_NAME}: {names}.",
            hint="Download the index, too; or leave the one file that is the model.",
        )
    return CheckpointError(nothing, hint="Give the folder that the weights are in.")


def _complete(files: list[Path], matches: list[re.Match[str]]) -> tuple[Path, ...]:
    counts = {(match["stem"], int(match["count"])) for match in matches}
    if len(counts) > 1:
        raise DamagedCheckpoint(
            f"{files[0].parent} holds shards of several models and no {INDEX_NAME}.",
            hint="Download the index, too; or leave one model's shards.",
        )
    ((stem, count),) = counts
    numbers = {int(match["number"]) for match in matches}
    missing = sorted(set(range(1, count + 1)) - numbers)
    if missing:
        name = f"{stem}-{missing[0]:05d}-of-{count:05d}.safetensors"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DamagedCheckpoint(
            f"{files[0].parent}: {name}{more} of {count} shards is missing.", hint=_AGAIN
        )
    return tuple(files)


def _holds(folder: Path, shapes: tuple[str, ...]) -> list[Path]:
    return sorted(file for shape in shapes for file in folder.glob(shape))


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")
