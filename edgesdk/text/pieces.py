"""What bytes a token of a `tokenizer.json` stands for.

Two kinds of vocabulary are in use by decoders. Byte-level BPE (GPT-2) writes each byte as one
printable character. SentencePiece's writes text as it is, with U+2581 for a space, and spells the
bytes of characters outside its vocabulary as `<0xNN>`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from edgesdk.errors import UnsupportedBundle

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

PieceBytes = Callable[[str], bytes]


def piece_bytes_for(tokenizer: dict[str, Any]) -> PieceBytes:
    """The function from a vocabulary entry to bytes, for a parsed `tokenizer.json`.

    Raises:
        UnsupportedBundle: it is of neither kind (WordPiece, for one).
    """
    parts = set(_types(tokenizer.get("decoder"))) | set(_types(tokenizer.get("pre_tokenizer")))
    model = tokenizer.get("model") or {}
    if "ByteLevel" in parts:
        return byte_level_bytes
    if model.get("type") == "Unigram" or model.get("byte_fallback") or "Metaspace" in parts:
        return sentencepiece_bytes
    raise UnsupportedBundle(
        f"This tokenizer.json is neither byte-level nor SentencePiece-like"
        f" (model {model.get('type')!r}, parts {sorted(parts)}).",
        hint="Use a decoder model; encoders' tokenizers cannot spell out an answer.",
    )


def byte_level_bytes(piece: str) -> bytes:
    """Bytes of an entry of a GPT-2 style vocabulary."""
    try:
        return bytes(_BYTE_OF[character] for character in piece)
    except KeyError:
        # An added token is written as plain text.
        return piece.encode("utf-8")


def sentencepiece_bytes(piece: str) -> bytes:
    """Bytes of an entry of a SentencePiece style vocabulary."""
    byte = _BYTE.fullmatch(piece)
    if byte:
        return bytes([int(byte[1], 16)])
    return piece.replace(_SPACE, " ").encode("utf-8")


def _types(part: dict[str, Any] | None) -> Iterator[str]:
    """Types of a component and of those it is a sequence of."""
    if part is None:
        return
    yield str(part.get("type"))
    for inner in (*part.get("decoders", ()), *part.get("pretokenizers", ())):
        yield from _types(inner)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's `bytes_to_unicode`, inverted: printable bytes are themselves, the others follow."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + index): byte for index, byte in enumerate(others)},
    }


_BYTE_OF = _byte_alphabet()
