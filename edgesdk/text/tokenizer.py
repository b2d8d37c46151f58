"""A bundle's `tokenizer.json` behind the `Tokenizer` protocol."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from edgesdk.bundle.manifest import TokenizerEntry
from edgesdk.bundle.opening import Bundle, utf8
from edgesdk.errors import DamagedBundle, InvalidText
from edgesdk.panics import panics_as
from edgesdk.text.pieces import piece_bytes_for


class BundleTokenizer:
    """Implements `edgesdk.text.base.Tokenizer` over the `tokenizers` library.

    May be used by several threads.

    Args:
        path: the `tokenizer.json`.
        entry: what the manifest says about special tokens.

    Raises:
        DamagedBundle: the file is not a tokenizer, or lacks a token that the manifest names.
        UnsupportedBundle: no bytes can be told for its tokens.
    """

    def __init__(self, path: Path, entry: TokenizerEntry) -> None:
        text = utf8(path)
        try:
            with panics_as("the tokenizers library", DamagedBundle):
                self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more precise
            raise DamagedBundle(
                f"{path} is not a tokenizer: {error}.", hint="Export the model again."
            ) from None
        # A file may ask for truncation, which would drop a prompt's end without a word.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bytes_of = piece_bytes_for(json.loads(text))
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = frozenset(token for token, added in added.items() if added.special)
        self._entry = entry
        self._size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        for token in (*entry.eos_token_ids, entry.bos_token_id):
            if token is not None and self._tokenizer.id_to_token(token) is None:
                raise DamagedBundle(
                    f"{path} has no token {token}, which the manifest names.",
                    hint="Export the model again.",
                )
        self._pieces: dict[int, bytes] = {}

    @classmethod
    def open(cls, bundle: Bundle) -> BundleTokenizer:
        """The tokenizer of an opened bundle."""
        entry = bundle.manifest.tokenizer
        return cls(bundle.file(entry.file), entry)

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset(self._entry.eos_token_ids)

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):
            raise InvalidText(
                f"The text has a lone surrogate at position {_surrogate(text)}.",
                hint="Decode the bytes that it came from as UTF-8 with errors='replace'.",
            ) from None
        if add_bos and self._entry.add_bos and self._entry.bos_token_id is not None:
            ids.insert(0, self._entry.bos_token_id)
        return ids

    def token_bytes(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token)
        return piece

    def _piece(self, token: int) -> bytes:
        # Rows that pad the logits to a round number have no entry, and so no text.
        text = None if token in self._control else self._tokenizer.id_to_token(token)
        return b"" if text is None else self._bytes_of(text)


def _surrogate(text: str) -> int:
    return next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
