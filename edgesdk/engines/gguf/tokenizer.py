"""The tokenizer inside a GGUF file, for models that come without a `tokenizer.json`."""

from __future__ import annotations

import ctypes
import string
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from edgesdk.engines.gguf.context import LlamaContext
from edgesdk.errors import EngineError, InvalidText

_LONGEST_PIECE = 256


def tokenized(
    api: Any, vocab: Any, text: str, *, add_special: bool, parse_special: bool
) -> list[int]:
    """Token ids of a text by llama.cpp's own tokenizer.

    Args:
        api: llama.cpp's functions; `vocab` is one of its vocabularies.
        add_special: whether the file's tokens around a text are added.
        parse_special: whether names of control tokens in the text become those tokens.

    Raises:
        InvalidText: the text has a lone surrogate.
        EngineError: llama.cpp failed.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidText(
            f"The text has a lone surrogate at position {error.start}.",
            hint="Decode the bytes that it came from as UTF-8 with errors='replace'.",
        ) from None
    room = len(data) + 8
    ids = (api.llama_token * room)()
    count = api.llama_tokenize(vocab, data, len(data), ids, room, add_special, parse_special)
    if count < 0:
        raise EngineError(f"llama.cpp could not tokenize {len(data)} bytes of text.")
    encoded: list[int] = ids[:count]
    return encoded


class LlamaCppTokenizer:
    """Implements `edgesdk.text.tokenizer.Tokenizer` with llama.cpp's own vocabulary functions.

    Not to be used after its engine is closed.
    """

    def __init__(self, api: Any, context: LlamaContext) -> None:
        self._api = api
        self._context = context
        self._vocab = context.vocab
        self._pieces: dict[int, bytes] = {}
        self._eos = frozenset(
            token
            for token in range(context.vocab_size)
            if api.llama_vocab_is_eog(self._vocab, token)
        )

    @property
    def vocab_size(self) -> int:
        return self._context.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._eos

    @property
    def bos_token(self) -> str | None:
        """Text of the BOS token, as chat templates want it; None where there is none."""
        return self._text(self._api.llama_vocab_bos(self._vocab))

    @property
    def eos_token(self) -> str | None:
        """Text of the EOS token, as chat templates want it; None where there is none."""
        return self._text(self._api.llama_vocab_eos(self._vocab))

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of other special tokens, by the names that chat templates know."""
        api, vocab = self._api, self._vocab
        ids = {
            "pad_token": api.llama_vocab_pad(vocab),
            "sep_token": api.llama_vocab_sep(vocab),
            "mask_token": api.llama_vocab_mask(vocab),
        }
        texts = {name: self._text(token) for name, token in ids.items()}
        return {name: text for name, text in texts.items() if text is not None}

    @property
    def wants_bos(self) -> bool:
        """Whether a text for this model starts with the BOS token."""
        return bool(self._api.llama_vocab_get_add_bos(self._vocab))

    @cached_property
    def added_tokens(self) -> Mapping[str, int]:
        texts = {self._text(token): token for token in sorted(self._special_and_added[1])}
        return {text: token for text, token in texts.items() if text is not None}

    @property
    def special_token_ids(self) -> frozenset[int]:
        return self._special_and_added[0]

    @cached_property
    def _special_and_added(self) -> tuple[frozenset[int], frozenset[int]]:
        """Tokens that stand for no text, and all that are looked for in a text first."""
        bos = self._api.llama_vocab_bos(self._vocab)
        special = {*self._eos, *([bos] if bos >= 0 else [])}
        added = set[int]()
        no_text = self._api.LLAMA_TOKEN_ATTR_CONTROL | self._api.LLAMA_TOKEN_ATTR_UNKNOWN
        for token in range(self.vocab_size):
            attributes = self._attributes(token)
            if attributes & no_text:
                special.add(token)
            elif attributes & self._api.LLAMA_TOKEN_ATTR_USER_DEFINED:
                added.add(token)
        return frozenset(special), frozenset(special | added)

    @cached_property
    def _ids_of_bytes(self) -> dict[bytes, int]:
        """Ids of single characters and bytes."""
        pieces = {token: self.token_bytes(token) for token in reversed(range(self.vocab_size))}
        return {piece: token for token, piece in pieces.items() if 0 < len(piece) <= 4}

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        encoded = self._encode(text, parse_special=True)
        if add_bos and self.wants_bos:
            encoded.insert(0, self._api.llama_vocab_bos(self._vocab))
        return encoded

    def encode_pieces(
        self, pieces: Sequence[tuple[str, bool]], control: Mapping[int, str]
    ) -> list[int]:
        # llama.cpp itself cuts a text at its control tokens and encodes each part by itself.
        ids: list[int] = []
        for place, (text, is_control) in enumerate(pieces):
            if is_control:
                ids.append(self.added_tokens[text])
                continue
            if place and self._strips(pieces[place - 1], self._api.LLAMA_TOKEN_ATTR_RSTRIP):
                text = text.lstrip(string.whitespace)
            after = pieces[place + 1] if place + 1 < len(pieces) else ("", False)
            if self._strips(after, self._api.LLAMA_TOKEN_ATTR_LSTRIP):
                text = text.rstrip(string.whitespace)
            ids += self._encode_plain(text, control)
        return ids

    def _strips(self, piece: tuple[str, bool], attribute: int) -> bool:
        """Whether a control token eats the whitespace on one side of it."""
        text, is_control = piece
        return is_control and bool(self._attributes(self.added_tokens[text]) & attribute)

    def _encode_plain(self, text: str, control: Mapping[int, str]) -> list[int]:
        ids: list[int] = []
        for token in self._encode(text, parse_special=False):
            made = control.get(token)
            # Merges may make one; and those that have a text are always looked for.
            ids += [token] if made is None else self._spelled(made, control)
        return ids

    def _spelled(self, text: str, control: Mapping[int, str]) -> list[int]:
        """Ids of a control token's text that are not its own."""
        if self._api.llama_vocab_type(self._vocab) == self._api.LLAMA_VOCAB_TYPE_BPE:
            parts = [self._encode(part, parse_special=False) for part in (text[:1], text[1:])]
            ids = [token for part in parts for token in part]
            if not control.keys() & set(ids):
                return ids
        return self._letters(text)

    def _letters(self, text: str) -> list[int]:
        """Ids of a text, character by character, or byte by byte."""
        ids: list[int] = []
        for letter in text:
            token = self._ids_of_bytes.get(letter.encode())
            spelled = (
                [token]
                if token is not None
                else [self._ids_of_bytes.get(bytes((byte,))) for byte in letter.encode()]
            )
            ids += [one for one in spelled if one is not None]
        return ids

    def _encode(self, text: str, *, parse_special: bool) -> list[int]:
        self._check_open()
        # add_special would append EOS too where a file asks for that, which ends the answer.
        return tokenized(
            self._api, self._vocab, text, add_special=False, parse_special=parse_special
        )

    def token_bytes(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            self._check_open()
            piece = self._pieces[token] = self._piece(token)
        return piece

    def _piece(self, token: int) -> bytes:
        room = _LONGEST_PIECE
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = self._api.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
            if size >= 0:
                return buffer.raw[:size]
            room = -size

    def _attributes(self, token: int) -> int:
        self._check_open()
        return int(self._api.llama_vocab_get_attr(self._vocab, token))

    def _text(self, token: int) -> str | None:
        self._check_open()
        if token < 0:
            return None
        return str(self._api.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))

    def _check_open(self) -> None:
        # The vocabulary lives in the model; asking for a closed engine's model raises.
        _ = self._context.model
