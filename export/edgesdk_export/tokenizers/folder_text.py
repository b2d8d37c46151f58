"""Read the text side of a folder with safetensors: the files that transformers saves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgesdk.errors import CheckpointError, DamagedCheckpoint
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.checkpoint.checkpoint import read_json
from edgesdk_export.tokenizers.ends import named_ends, turn_end
from edgesdk_export.tokenizers.text_files import (
    TEMPLATE_NAME,
    TEMPLATES_FOLDER,
    TextFiles,
    make_entry,
)


def read_folder_text(checkpoint: Checkpoint) -> TextFiles:
    """Copy `tokenizer.json`, without what it adds to a text or cuts off.

    Raises:
        CheckpointError: there is no tokenizer.json.
        DamagedCheckpoint: it cannot be loaded, or a special token is none of its tokens.
    """
    folder = checkpoint.folder
    path = folder / "tokenizer.json"
    original, tokenizer = _read_tokenizer(path)
    settings = _optional_json(folder / "tokenizer_config.json")
    named = special_tokens(settings, _optional_json(folder / "special_tokens_map.json"), tokenizer)
    generation = _optional_json(folder / "generation_config.json")
    default, tool_template = _chat_templates(folder, settings)

    bos_token, eos_token = named.pop("bos_token", None), named.pop("eos_token", None)
    bos_id, first = _id_of(tokenizer, path, bos_token), _first_added(tokenizer)
    if bos_id is None:
        # The tokenizer has none by name, so that no template gets to see it.
        configured = _ids(checkpoint.config.get("bos_token_id"))
        bos_id = first if first is not None else next(iter(configured), None)
    add_bos = settings.get("add_bos_token") is True
    if adds_tokens(json.loads(original).get("post_processor")):
        add_bos = first is not None and first == bos_id
    added = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
    special = {token: i for token, i in added.items() if _is_special(tokenizer, i)}
    variables = {**named, "bos_token": bos_token, "eos_token": eos_token}
    eos_ids = [
        *_ids(_id_of(tokenizer, path, eos_token)),
        *_ids(generation.get("eos_token_id")),
        *_ids(checkpoint.config.get("eos_token_id")),
        *_ids(added.get(turn_end(default, added, variables) or "")),
        *named_ends(special),
    ]
    entry = make_entry(
        chat_template=default,
        tool_template=tool_template,
        add_bos=add_bos and bos_id is not None,
        bos=(bos_token, bos_id),
        eos_token=eos_token,
        eos_ids=eos_ids,
        special_tokens=named,
    )
    return TextFiles(_bare(original), default, entry, tool_template)


# What the classes of transformers name where their settings do not.
_CLASS_TOKENS: Mapping[str, Mapping[str, str]] = {
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "GPTNeoXTokenizer": {
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
        "pad_token": "<|padding|>",
    },
    "CohereTokenizer": {
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "unk_token": "<UNK>",
        "sep_token": "<SEP>",
        "pad_token": "<PAD>",
        "cls_token": "<CLS>",
        "mask_token": "<MASK_TOKEN>",
    },
}


def special_tokens(
    settings: Mapping[str, Any], tokens_map: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, str]:
    """The special tokens that a tokenizer names, as transformers gives them to its template.

    Args:
        settings: tokenizer_config.json.
        tokens_map: special_tokens_map.json, which counts only beside older settings.
        tokenizer: defaults of the settings' class count only where it has the token.
    """
    if "added_tokens_decoder" not in settings:
        settings = {**settings, **tokens_map}
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    named = {
        name: token
        for name, token in _CLASS_TOKENS.get(kind, {}).items()
        if name not in settings and tokenizer.token_to_id(token) is not None
    }
    groups = [settings.get("extra_special_tokens"), settings.get("model_specific_special_tokens")]
    named |= {name: value for name, value in settings.items() if name.endswith("_token")}
    for group in groups:
        named |= group if isinstance(group, dict) else {}
    texts = {name: _text_of(value) for name, value in named.items()}
    return {name: text for name, text in texts.items() if text is not None}


def read_encoder_tokenizer(checkpoint: Checkpoint) -> bytes:
    """`tokenizer.json` with the special tokens that it puts around a text, without padding or
    truncation; raises as `read_folder_text`."""
    original, _ = _read_tokenizer(checkpoint.folder / "tokenizer.json")
    parts = {**json.loads(original), "truncation": None, "padding": None}
    return json.dumps(parts, ensure_ascii=False).encode()


def added_suffix(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The ids that a checkpoint's tokenizer puts after a text."""
    _, tokenizer = _read_tokenizer(checkpoint.folder / "tokenizer.json")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode("a").ids
    first = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return tuple(whole[first + len(bare) :])


def _read_tokenizer(path: Path) -> tuple[bytes, Tokenizer]:
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} holds no tokenizer.json.",
            hint="Make one: transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...).",
        )
    raw = path.read_bytes()
    try:
        return raw, Tokenizer.from_buffer(raw)
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


def adds_tokens(processor: Any) -> bool:
    """Whether a post-processor may put tokens around a text."""
    if not isinstance(processor, dict):
        return False
    if processor.get("type") == "Sequence":
        return any(map(adds_tokens, processor.get("processors", [])))
    return processor.get("type") != "ByteLevel"


def _first_added(tokenizer: Tokenizer) -> int | None:
    """The token that the post-processor puts before a text."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole: list[int] = tokenizer.encode("a").ids
    return whole[0] if whole[:1] != bare[:1] and whole else None


def _is_special(tokenizer: Tokenizer, token: int) -> bool:
    return bool(tokenizer.get_added_tokens_decoder()[token].special)


def _chat_templates(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The template, and the one for prompts with tools; files come before settings."""
    templates = {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted((folder / TEMPLATES_FOLDER).glob("*.jinja"))
    }
    if (folder / TEMPLATE_NAME).is_file():
        templates["default"] = (folder / TEMPLATE_NAME).read_text(encoding="utf-8")
    # The last is the file of older processors.
    for value in (
        settings.get("chat_template"),
        _optional_json(folder / "chat_template.json").get("chat_template"),
    ):
        templates = templates or _by_name(value)
    tool_template = templates.get("tool_use")
    default = templates.get("default", next(iter(templates.values()), None))
    return default, tool_template if tool_template != default else None


def _by_name(value: Any) -> dict[str, str]:
    """A template, a list of named ones, or a mapping of them."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(text, str)}


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
