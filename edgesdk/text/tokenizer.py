"""Tokenizers: text to token ids, and token ids to bytes."""

from __future__ import annotations

import functools
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from edgesdk.bundle.manifest import TokenizerEntry
from edgesdk.bundle.opening import Bundle, read_utf8
from edgesdk.errors import DamagedBundle, InvalidText, UnsupportedBundle
from edgesdk.system.panics import panics_as


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end an answer."""

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Ids, by their text, of tokens that are looked for in a text before anything else; ends of
        answers and BOS are among them."""

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Those that stand for no text of their own, and ends of answers and BOS."""

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """Ids of `text`. Special tokens that stand in the text become their ids.

        `add_bos` prepends the BOS token where the model wants one.

        Raises:
            InvalidText: `text` has a lone surrogate.
        """

    def encode_pieces(
        self, pieces: Sequence[tuple[str, bool]], control: Mapping[int, str]
    ) -> list[int]:
        """Ids of a prompt in pieces: texts, and whether each is that of a control token.

        Plain text gets no control token, whatever it says. Where it names none, the ids are those
        of the joined text. `control` has the texts of the control tokens.
        """

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that `token` stands for; may be part of a character, and is empty for
        control tokens such as `<|im_end|>`."""


class BundleTokenizer:
    """Implements `edgesdk.text.tokenizer.Tokenizer` over the `tokenizers` library.

    May be used by several threads.

    Args:
        path: the `tokenizer.json`.
        entry: what the manifest says about special tokens.

    Raises:
        DamagedBundle: the file is not a tokenizer, or lacks a token that the manifest names.
        UnsupportedBundle: no bytes can be told for its tokens.
    """

    def __init__(self, path: Path, entry: TokenizerEntry) -> None:
        text = read_utf8(path)
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
        self._added = {token.content: i for i, token in added.items()}
        for token in (*entry.eos_token_ids, entry.bos_token_id):
            if token is None:
                continue
            content = self._tokenizer.id_to_token(token)
            if content is None:
                raise DamagedBundle(
                    f"{path} has no token {token}, which the manifest names.",
                    hint="Export the model again.",
                )
            self._added[content] = token
        self._pieces: dict[int, bytes] = {}
        self._plain_text: _PlainTextTokenizer | None = None
        self._lock = threading.Lock()

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

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return self._added

    @property
    def special_token_ids(self) -> frozenset[int]:
        ends = {*self._entry.eos_token_ids, self._entry.bos_token_id}
        return self._control | {token for token in ends if token is not None}

    def encode_pieces(
        self, pieces: Sequence[tuple[str, bool]], control: Mapping[int, str]
    ) -> list[int]:
        with self._lock:
            # Made for the first text that needs it: most processes never see one.
            if self._plain_text is None or self._plain_text.control != control:
                self._plain_text = _PlainTextTokenizer(self._tokenizer, control)
        return self._plain_text.encode(pieces, self._letters)

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        ids = _encode(self._tokenizer, text)
        if add_bos and self._entry.add_bos and self._entry.bos_token_id is not None:
            ids.insert(0, self._entry.bos_token_id)
        return ids

    def token_bytes(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token)
        return piece

    def _letters(self, text: str) -> list[int]:
        """Ids of a text, character by character, or byte by byte."""
        ids: list[int] = []
        for letter in text:
            names = (letter, _SPACE if letter == " " else letter)
            data = letter.encode()
            spellings = (
                *([name] for name in names),
                [_LETTER_OF[byte] for byte in data],
                [f"<0x{byte:02X}>" for byte in data],
            )
            for spelling in spellings:
                found = [self._tokenizer.token_to_id(name) for name in spelling]
                whole = [token for token in found if token is not None]
                if len(whole) == len(found):
                    ids += whole
                    break
        return ids

    def _piece(self, token: int) -> bytes:
        # Rows that pad the logits to a round number have no entry, and so no text.
        text = None if token in self._control else self._tokenizer.id_to_token(token)
        return b"" if text is None else self._bytes_of(text)


class _PlainTextTokenizer:
    """The same tokenizer without its control tokens; each one has an alias, which stands for it.

    So a prompt is encoded in one go, and merges and spaces are those of the whole text. Nobody can
    write an alias into a text, because it is chosen at random.
    """

    def __init__(self, original: tokenizers.Tokenizer, control: Mapping[int, str]) -> None:
        self.control = control
        parts = json.loads(original.to_str())
        flags = {token["content"]: token for token in parts["added_tokens"]}
        for text in control.values():
            if text in flags:
                flags[text]["special"] = True
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(parts))
        # Special tokens are no longer looked for.
        self._tokenizer.encode_special_tokens = True
        nonce = secrets.token_bytes(16)
        self._aliases = {
            text: _private_use(nonce + token.to_bytes(4, "big")) for token, text in control.items()
        }
        self._tokenizer.add_tokens(
            [
                tokenizers.AddedToken(
                    alias,
                    special=False,
                    **{
                        flag: flags.get(text, {}).get(flag, False)
                        for flag in ("single_word", "lstrip", "rstrip", "normalized")
                    },
                )
                for text, alias in self._aliases.items()
            ]
        )
        self._ids = {text: token for token, text in control.items()}
        self._meaning = {
            self._tokenizer.token_to_id(alias): self._ids[text]
            for text, alias in self._aliases.items()
        }

    def encode(
        self, pieces: Sequence[tuple[str, bool]], letters: Callable[[str], list[int]]
    ) -> list[int]:
        """See `Tokenizer.encode_pieces`."""
        aliased = [self._aliases[text] if is_control else text for text, is_control in pieces]
        ids = _encode(self._tokenizer, "".join(aliased))
        aliases = sum(token in self._meaning for token in ids)
        if aliases == sum(is_control for _, is_control in pieces):
            return self._spelled(ids, letters)
        # One that counts only as a whole word stands beside a letter.
        apart: list[int] = []
        for text, is_control in pieces:
            if is_control:
                apart.append(self._ids[text])
            else:
                apart += self._spelled(_encode(self._tokenizer, text), letters)
        return apart

    def _spelled(self, ids: list[int], letters: Callable[[str], list[int]]) -> list[int]:
        """Aliases become what they stand for; a control token that merges made, its letters."""
        spelled: list[int] = []
        for token in ids:
            text = self.control.get(token)
            if token in self._meaning:
                spelled.append(self._meaning[token])
            else:
                spelled += [token] if text is None else letters(text)
        return spelled


def _private_use(data: bytes) -> str:
    """Write bytes in characters that Unicode gives no meaning."""
    return "".join(chr(0xE000 + byte) for byte in data)


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except (UnicodeEncodeError, TypeError):
        raise InvalidText(
            f"The text has a lone surrogate at position {_surrogate(text)}.",
            hint="Decode the bytes that it came from as UTF-8 with errors='replace'.",
        ) from None
    return ids


def _surrogate(text: str) -> int:
    return next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")


_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

PieceBytes = Callable[[str], bytes]


def piece_bytes_for(tokenizer: dict[str, Any]) -> PieceBytes:
    """Choose the function from a vocabulary entry to bytes, for a parsed `tokenizer.json`.

    Entries that are words (WordLevel, WordPiece, BPE with a suffix for a word's end) are written
    with the space that parts them, as the library's own decoding does.

    Raises:
        UnsupportedBundle: entries do not stand for text (CTC, for one).
    """
    model, decoder = tokenizer.get("model") or {}, tokenizer.get("decoder")
    decoders = set(_types(decoder))
    parts = decoders | set(_types(tokenizer.get("pre_tokenizer")))
    if "ByteLevel" in parts:
        return byte_level_bytes
    if "CTC" in parts:
        raise UnsupportedBundle(
            f"The parts {sorted(parts)} of this tokenizer.json belong to a model of speech.",
            hint="Use a model that writes text.",
        )
    if "WordPiece" in decoders or model.get("type") == "WordPiece":
        start = (decoder or {}).get("prefix") or model.get("continuing_subword_prefix") or "##"
        return functools.partial(_word_piece_bytes, start)
    if "BPEDecoder" in decoders or model.get("end_of_word_suffix"):
        end = (decoder or {}).get("suffix") or model.get("end_of_word_suffix") or "</w>"
        return functools.partial(_suffixed_piece_bytes, end)
    words = decoder is None and "Metaspace" not in parts and not model.get("byte_fallback")
    if words and not any(_SPACE in piece for piece in _pieces(model)):
        return _word_bytes
    return sentencepiece_bytes


def _pieces(model: dict[str, Any]) -> Iterator[str]:
    """The vocabulary's entries; Unigram's is a list of pairs."""
    vocabulary = model.get("vocab") or {}
    return (entry if isinstance(entry, str) else str(entry[0]) for entry in vocabulary)


def _word_bytes(piece: str) -> bytes:
    return f" {piece}".encode()


def _word_piece_bytes(start: str, piece: str) -> bytes:
    """A piece that begins with `start` continues a word."""
    return (piece.removeprefix(start) if piece.startswith(start) else f" {piece}").encode()


def _suffixed_piece_bytes(end: str, piece: str) -> bytes:
    """A piece that ends with `end` ends a word."""
    return (f"{piece.removesuffix(end)} " if piece.endswith(end) else piece).encode()


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
    """Types of a component, and of its parts where it is a sequence."""
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
_LETTER_OF = {byte: letter for letter, byte in _BYTE_OF.items()}
