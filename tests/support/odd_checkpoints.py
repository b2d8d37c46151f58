"""Small checkpoints with odd text sides, after public complaints; seeded, made when a test runs."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support.tiny_models import VOCAB_SIZE, make_tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_WORDS = ["[UNK]", "</s>", "Hello", "the", "cat", "##s", "sat", *(f"w{i}" for i in range(290))]


@functools.lru_cache(maxsize=1)
def _plain_files() -> Mapping[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        make_tiny("llama", Path(folder), num_hidden_layers=2)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def plain(folder: Path) -> Path:
    """A tiny llama whose text side has nothing odd."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in _plain_files().items():
        (folder / name).write_bytes(content)
    return folder


def with_json(folder: Path, name: str, **fields: Any) -> Path:
    """The checkpoint with some fields of one of its JSON files changed; None takes one out."""
    path = folder / name
    values = json.loads(path.read_text()) if path.is_file() else {}
    values.update(fields)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def with_template(folder: Path, template: str | None) -> Path:
    """A checkpoint with this chat template."""
    return with_json(plain(folder), "tokenizer_config.json", chat_template=template)


def with_added_token(folder: Path, content: str, token: int, *, in_vocabulary: bool) -> Path:
    """A checkpoint with one more added token, which may also be listed among the normal ones."""
    path = folder / "tokenizer.json"
    parts = json.loads(path.read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parts["added_tokens"].append({"id": token, "content": content, "special": True, **flags})
    if in_vocabulary:
        parts["model"]["vocab"][content] = token
    path.write_text(json.dumps(parts))
    return folder


def word_level() -> Tokenizer:
    """Whole words; what is none is unknown."""
    return Tokenizer(models.WordLevel(_ids(_WORDS), unk_token="[UNK]"))


def word_piece() -> Tokenizer:
    """Words, and the ends of words."""
    tokenizer = Tokenizer(models.WordPiece(_ids(_WORDS), unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def unigram_words() -> Tokenizer:
    """Unigram over words, without SentencePiece's mark for spaces."""
    return Tokenizer(models.Unigram(_scored(_WORDS), unk_id=0))


def unigram_pieces() -> Tokenizer:
    """Unigram as SentencePiece has it."""
    pieces = [
        "<unk>",
        "</s>",
        "▁Hello",
        "▁the",
        "▁",
        *"Helothcasw",
        *(f"▁w{i}" for i in range(200)),
    ]
    tokenizer = Tokenizer(models.Unigram(_scored(pieces), unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def bpe_with_word_ends() -> Tokenizer:
    """BPE whose last piece of a word has a suffix."""
    letters = sorted({*"Hello the cat sat"} - {" "})
    tokens = ["[UNK]", "</s>", *letters, *(f"{letter}</w>" for letter in letters)]
    model = models.BPE(_ids(tokens), [], unk_token="[UNK]", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


ODD_TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "word-level": word_level,
    "word-piece": word_piece,
    "unigram of words": unigram_words,
    "unigram of pieces": unigram_pieces,
    "bpe with word ends": bpe_with_word_ends,
}


def with_tokenizer(folder: Path, make: Callable[[], Tokenizer]) -> Path:
    """A checkpoint with another tokenizer, which ends texts with </s>."""
    plain(folder)
    tokenizer = make()
    if tokenizer.pre_tokenizer is None:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    assert tokenizer.get_vocab_size() <= VOCAB_SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return with_json(folder, "config.json", bos_token_id=None, eos_token_id=None)


def _ids(tokens: list[str]) -> dict[str, int]:
    return {token: place for place, token in enumerate(tokens)}


def _scored(tokens: list[str]) -> list[tuple[str, float]]:
    return [(token, -float(place)) for place, token in enumerate(tokens)]
