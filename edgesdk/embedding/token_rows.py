"""Turn texts, and pairs of texts, into the rows of token ids that an encoder reads.

What a text says never becomes a special token: "[SEP]" in it is encoded as any other word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import tokenizers

from edgesdk.bundle.opening import read_utf8
from edgesdk.engines.encoder_engine import TokenRow
from edgesdk.errors import ContextOverflow, DamagedBundle, InvalidText
from edgesdk.system.panics import panics_as
from edgesdk.text.prompts import PromptEncoder

Text = str | tuple[str, str]


@runtime_checkable
class RowTokenizer(Protocol):
    """Texts to rows, with a model's special tokens around each. May be used by several threads."""

    def row(self, text: Text, *, limit: int | None = None) -> TokenRow:
        """The row of a text, or of a pair.

        Args:
            limit: tokens that are kept of it, special ones included; of a pair the longer text
                gives way. None keeps all.

        Raises:
            InvalidText: a text has a lone surrogate.
        """


class FileRowTokenizer:
    """Implements `RowTokenizer` over a `tokenizer.json` and its post-processor.

    Raises:
        DamagedBundle: the file is not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        self._json = read_utf8(path)
        self._path = path
        self._whole = self._load()
        self._cutting: dict[int, tokenizers.Tokenizer] = {}

    def row(self, text: Text, *, limit: int | None = None) -> TokenRow:
        tokenizer = self._whole
        if limit is not None and limit not in self._cutting:
            cutting = self._load()
            cutting.enable_truncation(limit)
            self._cutting[limit] = cutting
        if limit is not None:
            tokenizer = self._cutting[limit]
        parts = (text,) if isinstance(text, str) else text
        try:
            found = tokenizer.encode(*parts)
        except (UnicodeEncodeError, TypeError):
            raise InvalidText(
                "The text has a lone surrogate.",
                hint="Decode the bytes that it came from as UTF-8 with errors='replace'.",
            ) from None
        return TokenRow(tuple(found.ids), tuple(found.type_ids) if any(found.type_ids) else ())

    def _load(self) -> tokenizers.Tokenizer:
        try:
            with panics_as("the tokenizers library", DamagedBundle):
                found = tokenizers.Tokenizer.from_str(self._json)
        except Exception as error:  # the library raises nothing more precise
            raise DamagedBundle(
                f"{self._path} is not a tokenizer: {error}.", hint="Export the model again."
            ) from None
        found.no_truncation()
        found.no_padding()
        found.encode_special_tokens = True
        return found


class DecoderRowTokenizer:
    """Implements `RowTokenizer` for a decoder: BOS where it wants one, the text, and a suffix."""

    def __init__(self, encoder: PromptEncoder, suffix: Sequence[int]) -> None:
        self._encoder = encoder
        self._suffix = tuple(suffix)

    def row(self, text: Text, *, limit: int | None = None) -> TokenRow:
        tokenizer = self._encoder.tokenizer
        assert isinstance(text, str), "a decoder reads no pairs"
        control = self._encoder.control_tokens.ids
        body = tokenizer.encode_pieces([(text, False)], control)
        start = tokenizer.encode("", add_bos=True)
        room = None if limit is None else max(0, limit - len(start) - len(self._suffix))
        return TokenRow((*start, *body[:room], *self._suffix))


def rows_of(
    tokenizer: RowTokenizer, texts: Sequence[Text], *, limit: int, truncate: bool
) -> list[TokenRow]:
    """The rows of all texts, each of `limit` tokens at most.

    Args:
        truncate: cut what is longer, at its end; else it is an error.

    Raises:
        ContextOverflow: a text is longer.
        InvalidText: a text has a lone surrogate.
    """
    rows = [tokenizer.row(text, limit=limit if truncate else None) for text in texts]
    for place, row in enumerate(rows):
        if len(row.ids) > limit:
            raise too_long(place, len(row.ids), limit)
    return rows


def too_long(place: int, tokens: int, limit: int) -> ContextOverflow:
    """The error for the text at a place of a list."""
    return ContextOverflow(
        f"Text {place} has {tokens:,} tokens; the model reads {limit:,}.",
        tokens=tokens,
        limit=limit,
        hint="Cut it into parts, or pass truncate=True to leave out what is too much.",
    )
