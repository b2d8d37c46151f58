"""The tokenizer inside a GGUF file, for models that come without a `tokenizer.json`."""

from __future__ import annotations

import ctypes
from typing import Any

from edgesdk.engines.gguf.context import LlamaContext
from edgesdk.errors import EngineError, InvalidText

_LONGEST_PIECE = 256


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
    def wants_bos(self) -> bool:
        """Whether a text for this model starts with the BOS token."""
        return bool(self._api.llama_vocab_get_add_bos(self._vocab))

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        self._check_open()
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidText(
                f"The text has a lone surrogate at position {error.start}.",
                hint="Decode the bytes that it came from as UTF-8 with errors='replace'.",
            ) from None
        room = len(data) + 8
        ids = (self._api.llama_token * room)()
        # add_special would append EOS too where a file asks for that, which ends the answer.
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, False, True)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize {len(data)} bytes of text.")
        encoded: list[int] = ids[:count]
        if add_bos and self.wants_bos:
            encoded.insert(0, self._api.llama_vocab_bos(self._vocab))
        return encoded

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

    def _text(self, token: int) -> str | None:
        self._check_open()
        if token < 0:
            return None
        return str(self._api.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))

    def _check_open(self) -> None:
        # The vocabulary lives in the model; asking for a closed engine's model raises.
        _ = self._context.model
