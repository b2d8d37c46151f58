"""Read the text side of a folder with safetensors: the files that transformers saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgesdk.errors import CheckpointError, DamagedCheckpoint
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.checkpoint.checkpoint import read_json
from edgesdk_export.tokenizers.text_files import TEMPLATE_NAME, TextFiles, make_entry


def read_folder_text(checkpoint: Checkpoint) -> TextFiles:
    """Copy `tokenizer.json`, without what it adds to a text or cuts off.

    Raises:
        CheckpointError: there is no tokenizer.json.
        DamagedCheckpoint: it cannot be loaded, or a special token is none of its tokens.
    """
    folder = checkpoint.folder
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no tokenizer.json.",
            hint="Make one: transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...).",
        )
    original = path.read_bytes()
    tokenizer = _load(path, original)
    settings = _optional_json(folder / "tokenizer_config.json")
    named = {**_optional_json(folder / "special_tokens_map.json"), **settings}
    generation = _optional_json(folder / "generation_config.json")

    bos_token, eos_token = _text_of(named.get("bos_token")), _text_of(named.get("eos_token"))
    bos_id = _id_of(tokenizer, path, bos_token)
    if bos_id is None and (configured := _ids(checkpoint.config.get("bos_token_id"))):
        bos_id = configured[0]
        bos_token = tokenizer.id_to_token(bos_id)
    eos_ids = [
        *_ids(_id_of(tokenizer, path, eos_token)),
        *_ids(generation.get("eos_token_id")),
        *_ids(checkpoint.config.get("eos_token_id")),
    ]
    if eos_token is None and eos_ids:
        eos_token = tokenizer.id_to_token(eos_ids[0])
    add_bos = settings.get("add_bos_token")
    if not isinstance(add_bos, bool):
        add_bos = bos_id is not None and tokenizer.encode("a").ids[:1] == [bos_id]
    template = _chat_template(folder, settings)
    entry = make_entry(
        chat_template=template,
        add_bos=add_bos and bos_id is not None,
        bos=(bos_token, bos_id),
        eos_token=eos_token,
        eos_ids=eos_ids,
    )
    return TextFiles(_bare(original), template, entry)


def _load(path: Path, raw: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(raw)
    except Exception as error:  # the library raises bare Exceptions
        raise DamagedCheckpoint(
            f"{path} cannot be loaded: {error}.", hint="Download the checkpoint again."
        ) from None


def _bare(raw: bytes) -> bytes:
    """The same tokenizer without special tokens around a text, padding or truncation."""
    parts: dict[str, Any] = json.loads(raw)
    bare = {
        **parts,
        "truncation": None,
        "padding": None,
        "post_processor": _harmless(parts.get("post_processor")),
    }
    return raw if bare == parts else json.dumps(bare, ensure_ascii=False).encode()


def _harmless(processor: Any) -> Any:
    if not isinstance(processor, dict):
        return None
    if processor.get("type") == "Sequence":
        kept = [part for part in map(_harmless, processor.get("processors", [])) if part]
        return {**processor, "processors": kept} if kept else None
    # Only offsets are this one's business.
    return processor if processor.get("type") == "ByteLevel" else None


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / TEMPLATE_NAME
    if file.is_file():
        return file.read_text(encoding="utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):
        templates = {
            item.get("name"): item.get("template") for item in value if isinstance(item, dict)
        }
        value = templates.get("default", next(iter(templates.values()), None))
    return value if isinstance(value, str) else None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text_of(value: Any) -> str | None:
    """A special token is written as its text, or as an object with a `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _id_of(tokenizer: Tokenizer, path: Path, token: str | None) -> int | None:
    if token is None:
        return None
    found = tokenizer.token_to_id(token)
    if found is None:
        raise DamagedCheckpoint(
            f"{path}: the special token '{token}' is not in the vocabulary.",
            hint="Use the tokenizer files that came with the checkpoint.",
        )
    return int(found)


def _ids(value: Any) -> list[int]:
    """An id, a list of ids, or nothing."""
    values = value if isinstance(value, list) else [value]
    return [
        item
        for item in values
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31
    ]
