"""Read how a checkpoint's hidden states become vectors: the files of sentence-transformers.

`modules.json` lists what a text goes through. Format: https://sbert.net, "Creating Custom Models".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgesdk.bundle.manifest import EmbeddingEntry, Pooling
from edgesdk.errors import ConfigMismatch, DamagedCheckpoint
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.checkpoint.checkpoint import read_json
from edgesdk_export.tokenizers.folder_text import added_suffix

_POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# How the files of older versions name them, with a flag for each.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_HINT = "An export would not compute what sentence-transformers computes."


def decoder_embedding(checkpoint: Checkpoint, context: int) -> EmbeddingEntry | None:
    """`read_embedding` of a decoder, whose tokenizer may put tokens after a text."""
    if checkpoint.container == "gguf" or not (checkpoint.folder / "modules.json").is_file():
        return None
    return read_embedding(checkpoint, context=context, suffix=added_suffix(checkpoint))


def read_embedding(
    checkpoint: Checkpoint, *, context: int, suffix: tuple[int, ...] = ()
) -> EmbeddingEntry | None:
    """What the files of sentence-transformers say; None where there are none.

    Args:
        context: most tokens of the model itself.
        suffix: see `EmbeddingEntry`.

    Raises:
        ConfigMismatch: a text goes through something that an `EmbeddingEntry` cannot say.
        DamagedCheckpoint: a file is not what it should be.
    """
    folder = checkpoint.folder
    if not (folder / "modules.json").is_file():
        return None
    modules = _modules(folder / "modules.json")
    pooling: Pooling | None = None
    normalize = False
    for kind, path in modules:
        if kind == "Pooling":
            pooling = _pooling(folder / path / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ConfigMismatch(
                f"{folder / 'modules.json'}: the module {kind!r} is not supported.", hint=_HINT
            )
    if pooling is None:
        raise ConfigMismatch(f"{folder / 'modules.json'} names no Pooling.", hint=_HINT)
    prompts, default = _prompts(folder / "config_sentence_transformers.json")
    return EmbeddingEntry(
        pooling=pooling,
        normalize=normalize,
        max_tokens=max_tokens(folder, context),
        prompts=prompts,
        default_prompt=default,
        suffix=suffix,
    )


def max_tokens(folder: Path, context: int) -> int:
    """Most tokens of a text, by the first file that says so, and never more than the context."""
    for name, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        found = read_json(folder / name).get(key) if (folder / name).is_file() else None
        if isinstance(found, int | float) and found >= 1:
            return int(min(found, context))
    return context


def _modules(path: Path) -> list[tuple[str, str]]:
    """The class and the folder of each module."""
    try:
        found = json.loads(path.read_bytes())
        return [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(
            f"{path} cannot be read: {error}.", hint="Download the checkpoint again."
        ) from None


def _pooling(path: Path) -> Pooling:
    config = read_json(path)
    named = config.get("pooling_mode")
    modes = {mode for flag, mode in _FLAGS.items() if config.get(flag) is True}
    if named is not None:
        modes = {named} if isinstance(named, str) else set(map(str, named))
    mode = next(iter(modes)) if len(modes) == 1 else " + ".join(sorted(modes))
    if mode not in _POOLINGS or config.get("include_prompt") is False:
        without = " without the prompt" if config.get("include_prompt") is False else ""
        raise ConfigMismatch(f"{path}: the pooling {mode!r}{without} is not supported.", hint=_HINT)
    return _POOLINGS[mode]


def _prompts(path: Path) -> tuple[dict[str, str], str | None]:
    config: dict[str, Any] = read_json(path) if path.is_file() else {}
    found = config.get("prompts")
    prompts = {str(k): str(v) for k, v in found.items() if v} if isinstance(found, dict) else {}
    default = config.get("default_prompt_name")
    return prompts, default if default in prompts else None
