"""A vocabulary of bytes and of marks that stand for no text, as many models have them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from tests.support.fake_engine import VOCAB, ByteTokenizer


class ControlTokenizer(ByteTokenizer):
    """Implements `Tokenizer`: bytes, and behind them one control token for each mark."""

    def __init__(self, marks: Iterable[str]) -> None:
        added = {mark: VOCAB + place for place, mark in enumerate(dict.fromkeys(marks))}
        self.added_tokens: Mapping[str, int] = MappingProxyType(added)
        self.special_token_ids = frozenset(added.values())
        self.vocab_size = VOCAB + len(added)
        longest = sorted(map(re.escape, added), key=len, reverse=True)
        self._marks = re.compile(f"({'|'.join(longest) or '(?!)'})")

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        ids: list[int] = []
        for part in self._marks.split(text):
            token = self.added_tokens.get(part)
            ids += part.encode() if token is None else [token]
        return ids

    def encode_pieces(
        self, pieces: Sequence[tuple[str, bool]], control: Mapping[int, str]
    ) -> list[int]:
        return [
            token
            for text, is_control in pieces
            for token in ([self.added_tokens[text]] if is_control else text.encode())
        ]

    def token_bytes(self, token: int) -> bytes:
        # No text has the last byte in it, and llguidance marks control tokens with it.
        return b"" if token >= VOCAB - 1 else super().token_bytes(token)
