"""Read and check the vocabulary in GGUF metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Tokenizer

from edgesdk.errors import DamagedCheckpoint
from edgesdk_export.checkpoint import Checkpoint

PHI3_NAME = re.compile(r"(phi)-?(3)", re.IGNORECASE)
PHI3_KEEPS_SPACE = frozenset(("<unk>", "<s>", "<|endoftext|>"))


class TokenKind(IntEnum):
    """GGUF's token types (llama.cpp's `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufVocabulary:
    """Tokens by id, and what each one is.

    Attributes:
        where: the file, for messages.
        values: the metadata under `tokenizer.ggml.`, by the rest of the key.
    """

    where: str
    values: Mapping[str, Any]
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]

    @property
    def ids(self) -> dict[str, int]:
        """Ids by text; the last one where a text occurs twice, as in llama.cpp."""
        return {token: i for i, token in enumerate(self.tokens)}

    def special_id(self, name: str) -> int | None:
        """The id under `<name>_token_id`; None where there is none."""
        value = self.values.get(f"{name}_token_id")
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise self.damaged(f"{name}_token_id = {value!r} is no token")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean of the metadata."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.damaged(f"{key} = {value!r} is not true or false")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """An array of strings of the metadata."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.damaged(f"{key} is missing or no array of strings")
        return tuple(value)

    def damaged(self, what: str) -> DamagedCheckpoint:
        """An error about this vocabulary."""
        return DamagedCheckpoint(
            f"{self.where}: tokenizer.ggml: {what}.", hint="Download the checkpoint again."
        )


def read_gguf_vocabulary(checkpoint: Checkpoint) -> GgufVocabulary:
    """Raises `DamagedCheckpoint` where there are no tokens, or their types do not match them."""
    start = "tokenizer.ggml."
    values = {
        key[len(start) :]: value
        for key, value in checkpoint.config.items()
        if key.startswith(start)
    }
    bare = GgufVocabulary(str(checkpoint.path), values, (), ())
    tokens = bare.strings("tokens")
    kinds = values.get("token_type", [int(TokenKind.NORMAL)] * len(tokens))
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise bare.damaged(f"token_type does not match the {len(tokens):,} tokens")
    return GgufVocabulary(bare.where, values, tokens, tuple(kinds))


def is_named_phi3(model_name: str) -> bool:
    """Whether llama.cpp, by a model's `general.name` alone, lets all added tokens but
    `PHI3_KEEPS_SPACE` swallow the whitespace that follows them (the end of
    `llama_vocab::impl::load` in its src/llama-vocab.cpp)."""
    return PHI3_NAME.search(model_name) is not None


def add_fixed_tokens(
    tokenizer: Tokenizer, vocabulary: GgufVocabulary, *, model_name: str | None
) -> None:
    """Tokens that are found in the raw text before anything else happens to it. Control tokens
    are special: they stand for no bytes. `model_name` is the metadata's `general.name`."""
    swallow = model_name is not None and is_named_phi3(model_name)
    fixed = []
    for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        if kind in (TokenKind.CONTROL, TokenKind.UNKNOWN, TokenKind.USER_DEFINED) and token:
            rstrip = swallow and token not in PHI3_KEEPS_SPACE
            special = kind != TokenKind.USER_DEFINED
            fixed.append(AddedToken(token, special=special, normalized=False, rstrip=rstrip))
    tokenizer.add_tokens(fixed)
