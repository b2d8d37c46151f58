"""Open a checkpoint: find out which container it is stored in, and read its header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesdk.bundle.manifest import checkpoint_name
from edgesdk.errors import CheckpointError, DamagedCheckpoint, MissingExtra
from edgesdk_export.checkpoint.checkpoint import Checkpoint, read_json
from edgesdk_export.checkpoint.dequantize import dequantized, notes_on
from edgesdk_export.checkpoint.safetensors_reader import read_safetensors_folder
from edgesdk_export.checkpoint.trained_blocks import with_trained_blocks
from edgesdk_export.checkpoint.weight_files import (
    nothing_to_open,
    refuse_adapter,
    weight_files,
)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder with safetensors and a `config.json`, a `.gguf` file, or a folder that holds
    exactly one `.gguf`. Only headers are read.

    Raises:
        DamagedCheckpoint: a file is missing, cut, or contradicts its own header.
        CheckpointError: there is nothing here that can be opened.
        MissingExtra: it is a GGUF and the gguf package is not installed.
    """
    if path.is_file() and path.suffix == ".gguf":
        return _open_gguf(path)
    if not path.is_dir():
        state = "is not a checkpoint" if path.exists() else "does not exist"
        raise CheckpointError(
            f"{path} {state}.", hint="Give a folder with safetensors, or a .gguf file."
        )
    files, ggufs = weight_files(path), sorted(path.glob("*.gguf"))
    refuse_adapter(path, beside_weights=bool(files or ggufs))
    if files:
        return _open_safetensors(path)
    if len(ggufs) == 1:
        return _open_gguf(ggufs[0])
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise CheckpointError(f"{path} holds several GGUF files: {names}.", hint="Name one.")
    raise nothing_to_open(path)


def _open_safetensors(folder: Path) -> Checkpoint:
    config = read_json(folder / "config.json")
    stored, files = read_safetensors_folder(folder)
    tensors = with_trained_blocks(folder, dequantized(stored, config, folder))
    return Checkpoint(
        path=folder,
        container="safetensors",
        name=checkpoint_name(folder),
        config=config,
        tensors=tensors,
        files=files,
        licence=_licence_of_card(folder / "README.md"),
        notes=notes_on(tensors),
    )


def _open_gguf(path: Path) -> Checkpoint:
    try:
        from edgesdk_export.checkpoint.gguf_reader import read_gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingExtra("gguf", extra="export", needed_for="Reading a GGUF file") from None
    metadata, tensors = read_gguf(path)
    _refuse_other_kinds(path, metadata)
    if not tensors:
        raise DamagedCheckpoint(f"{path} holds no tensors.", hint="Download the checkpoint again.")
    name, licence = metadata.get("general.name"), metadata.get("general.license")
    return Checkpoint(
        path=path,
        container="gguf",
        name=name if isinstance(name, str) and name else path.stem,
        config=metadata,
        tensors=tensors,
        files=(path,),
        licence=licence if isinstance(licence, str) else None,
    )


# What a GGUF holds that is no model, by its `general.type`, and what to do.
_OTHER_KINDS = {
    "adapter": (
        "is a LoRA adapter, and no model by itself",
        "Merge it first: llama-export-lora -m BASE.gguf --lora ADAPTER.gguf -o MERGED.gguf.",
    ),
    "imatrix": (
        "is an importance matrix of llama.cpp, and no model",
        "Give the GGUF of the model; importance is measured here.",
    ),
    "mmproj": (
        "is the projector of a multimodal model's images, and no model",
        "Give the GGUF that it came with; only text is exported.",
    ),
}


def _refuse_other_kinds(path: Path, metadata: Mapping[str, Any]) -> None:
    kind = metadata.get("general.type")
    if metadata.get("general.architecture") == "clip":
        kind = "mmproj"
    if isinstance(kind, str) and kind in _OTHER_KINDS:
        what, hint = _OTHER_KINDS[kind]
        raise CheckpointError(f"{path} {what}.", hint=hint)


def _licence_of_card(card: Path) -> str | None:
    """The `license:` line of a model card's front matter."""
    if not card.is_file():
        return None
    front = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(errors="replace"), re.DOTALL)
    found = re.search(r"^license:[ \t]*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
