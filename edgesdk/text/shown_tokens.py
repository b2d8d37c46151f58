"""A tokenizer with texts for some of its control tokens, so that they are a part of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgesdk.text.control_tokens import silent_tokens
from edgesdk.text.tokenizer import Tokenizer


class ShownTokens:
    """Implements `Tokenizer` as another one does, but for the bytes of some control tokens.

    Args:
        tokenizer: the model's own.
        is_shown: whether a control token of this name is to be a part of an answer's text.
    """

    def __init__(self, tokenizer: Tokenizer, is_shown: Callable[[str], bool]) -> None:
        self._tokenizer = tokenizer
        silent = silent_tokens(tokenizer)
        self._shown = {token: text.encode() for text, token in silent.items() if is_shown(text)}

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._tokenizer.eos_token_ids

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return self._tokenizer.added_tokens

    @property
    def special_token_ids(self) -> frozenset[int]:
        return self._tokenizer.special_token_ids

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_bos=add_bos)

    def encode_pieces(
        self, pieces: Sequence[tuple[str, bool]], control: Mapping[int, str]
    ) -> list[int]:
        return self._tokenizer.encode_pieces(pieces, control)

    def token_bytes(self, token: int) -> bytes:
        return self._shown.get(token) or self._tokenizer.token_bytes(token)
