"""Write the text side of a checkpoint as GGUF metadata (`tokenizer.*`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgesdk.errors import CheckpointError
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.gguf.container import Value
from edgesdk_export.gguf.tokenizer_model import adds_space_prefix, piece_scores, pre_tokenizer_name
from edgesdk_export.tokenizers import TextFiles
from edgesdk_export.tokenizers.ends import named_ends
from edgesdk_export.tokenizers.gguf_tokenizer import NAMED_KEYS
from edgesdk_export.tokenizers.gguf_vocabulary import TokenKind

_KEYS = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_HINT = "Export to ONNX instead, or from a GGUF of this model."


def vocabulary_metadata(checkpoint: Checkpoint, text: TextFiles, size: int) -> dict[str, Value]:
    """Make the metadata with which llama.cpp gives the ids of the checkpoint's own tokenizer. Those
    of a GGUF are copied.

    Args:
        size: rows of the embedding; ids that have no token get a placeholder.

    Raises:
        CheckpointError: llama.cpp has no such tokenizer.
    """
    if checkpoint.container == "gguf":
        return _copied(checkpoint.config, text)
    where = str(checkpoint.folder / "tokenizer.json")
    parts = json.loads(text.tokenizer_json)
    model = parts.get("model") or {}
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"{where}: a tokenizer of type {model.get('type')!r} is not supported; BPE is.",
            hint=_HINT,
        )
    ids = dict(model["vocab"])
    merges = [_pair(merge) for merge in model["merges"]]
    tokens, kinds = _tokens(parts, ids, size, where=where)
    values: dict[str, Value] = {}
    if model.get("byte_fallback"):
        values["model"] = "llama"
        values["pre"] = "default"
        values["tokens"] = tokens
        values["scores"] = piece_scores(ids, merges, size, where=where)
        _mark_bytes(tokens, kinds, model.get("unk_token"))
        values["token_type"] = kinds
        values["add_space_prefix"] = adds_space_prefix(parts, where=where)
    else:
        values["model"] = "gpt2"
        values["pre"] = pre_tokenizer_name(parts, where=where)
        values["tokens"] = tokens
        values["token_type"] = kinds
        values["merges"] = [f"{left} {right}" for left, right in merges]
    values |= _special_ids(text, tokens)
    metadata = {_KEYS + key: value for key, value in values.items()}
    if text.chat_template is not None:
        metadata[_TEMPLATE] = text.chat_template
    if text.tool_template is not None:
        metadata[f"{_TEMPLATE}.tool_use"] = text.tool_template
        metadata["tokenizer.chat_templates"] = ["tool_use"]
    return metadata


def _tokens(
    parts: Mapping[str, Any], ids: Mapping[str, int], size: int, *, where: str
) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int32]]]:
    """The text and the kind of each id."""
    added = {token["id"]: token for token in parts.get("added_tokens") or []}
    highest = max([*ids.values(), *added])
    if highest >= size:
        raise CheckpointError(
            f"{where}: the tokenizer has the id {highest:,}; the embedding has {size:,} rows.",
            hint="Use the tokenizer that came with the checkpoint.",
        )
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = np.full(size, TokenKind.UNUSED, np.int32)
    for token, i in ids.items():
        tokens[i], kinds[i] = token, TokenKind.NORMAL
    for i, token in added.items():
        tokens[i] = token["content"]
        kinds[i] = TokenKind.CONTROL if token["special"] else TokenKind.USER_DEFINED
    return tokens, kinds


def _mark_bytes(
    tokens: list[str], kinds: np.ndarray[Any, np.dtype[np.int32]], unknown: str | None
) -> None:
    places = {token: i for i, token in enumerate(tokens)}
    for byte in range(256):
        if (place := places.get(f"<0x{byte:02X}>")) is not None:
            kinds[place] = TokenKind.BYTE
    if (place := places.get(unknown or "<unk>")) is not None:
        kinds[place] = TokenKind.UNKNOWN


# The ends of an answer that llama.cpp reads, in the order in which they are used here: of a text,
# of a turn, of a message. It ends at the last three too, which belong to fill-in-the-middle.
_END_KEYS = tuple(
    f"{name}_token_id" for name in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
)


def end_ids(ids: Sequence[int], tokens: Sequence[str]) -> dict[str, int]:
    """Ends of an answer under the keys that llama.cpp reads. Those that it knows by their names
    come last: it ends at them without a key, and there are six keys."""
    first, others = ids[:1], ids[1:]
    known = set(named_ends({token: i for i, token in enumerate(tokens)}))
    ordered = [*first, *sorted(others, key=lambda token: token in known)]
    return dict(zip(_END_KEYS, ordered, strict=False))


def _special_ids(text: TextFiles, names: Sequence[str]) -> dict[str, Value]:
    entry = text.entry
    values: dict[str, Value] = {}
    if entry.bos_token_id is not None:
        values["bos_token_id"] = entry.bos_token_id
    values |= end_ids(entry.eos_token_ids, names)
    values["add_bos_token"] = entry.add_bos
    places = {token: i for i, token in enumerate(names)}
    for name, key in NAMED_KEYS.items():
        place = places.get(entry.special_tokens.get(name, ""))
        if place is not None:
            values[f"{key}_token_id"] = place
    return values


def _copied(metadata: Mapping[str, Any], text: TextFiles) -> dict[str, Value]:
    """A GGUF's own `tokenizer.*`; arrays of numbers in the types that llama.cpp reads. A template
    that cannot be used stays behind."""
    copied: dict[str, Value] = {}
    for key, value in metadata.items():
        if not key.startswith("tokenizer."):
            continue
        if key == _TEMPLATE and text.chat_template is None:
            continue
        if isinstance(value, list) and value and not isinstance(value[0], str):
            floats = isinstance(value[0], float)
            copied[key] = np.array(value, np.float32) if floats else np.array(value, np.int32)
        else:
            copied[key] = value
    return copied


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
