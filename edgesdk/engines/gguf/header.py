"""Damage in a GGUF header that would make llama.cpp abort the process instead of refusing the file.

llama.cpp checks most of a file itself and says what is wrong. It asserts, however, that no two
tokens have the same text, and it reads each text up to its first NUL. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import collections
import mmap
import struct
from pathlib import Path

from edgesdk.errors import EngineError

_MAGIC = b"GGUF"
_TOKENS = b"tokenizer.ggml.tokens"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_PROLOGUE = struct.Struct("<4sIQQ")
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from
_HINT = "Download or export the model again."
# Far above any vocabulary, and low enough that a lie in a large file is not walked for minutes.
MOST_ITEMS = 2**22


def check_header(path: Path) -> frozenset[bytes]:
    """Walk the metadata up to the vocabulary, and look for a token that is there twice.

    Returns:
        The texts of the vocabulary.

    Raises:
        EngineError: the file cannot be read, is no GGUF file, ends too early, or repeats a token.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(_PROLOGUE.size)
            if start[: len(_MAGIC)] != _MAGIC:
                raise EngineError(
                    f"{path} is not a GGUF file: it starts with {start[:4]!r}.", hint=_HINT
                )
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                tokens = _tokens(data)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}.") from None
    except (struct.error, KeyError, IndexError, OverflowError, ValueError) as error:
        raise EngineError(f"The GGUF header of {path} is damaged: {error!r}.", hint=_HINT) from None
    texts = frozenset(tokens)
    if len(texts) != len(tokens):
        twice = collections.Counter(tokens).most_common(1)[0][0]
        raise EngineError(
            f"The vocabulary of {path} is damaged: it has the token {twice!r} twice.", hint=_HINT
        )
    return texts


def _tokens(data: mmap.mmap) -> list[bytes]:
    _, _, _, entries = _PROLOGUE.unpack_from(data)
    offset = _PROLOGUE.size
    for _ in range(entries):
        size: int = _U64(data, offset)[0]
        key = data[offset + 8 : offset + 8 + size]
        offset += 8 + size
        kind: int = _U32(data, offset)[0]
        offset += 4
        if kind == _STRING:
            offset += 8 + _U64(data, offset)[0]
        elif kind != _ARRAY:
            offset += _SIZES[kind]
        else:
            kind, count = _U32(data, offset)[0], _U64(data, offset + 4)[0]
            offset += 12
            if count > MOST_ITEMS:
                raise ValueError(f"{key!r} claims {count:,} items")
            if kind != _STRING:
                offset += _SIZES[kind] * count
            elif key == _TOKENS:
                return _strings(data, offset, count)
            else:
                for _ in range(count):
                    offset += 8 + _U64(data, offset)[0]
    return []


def _strings(data: mmap.mmap, offset: int, count: int) -> list[bytes]:
    strings = []
    for _ in range(count):
        size = _U64(data, offset)[0]
        offset += 8
        # llama.cpp gives empty texts a name of their own.
        if text := data[offset : offset + size].partition(b"\0")[0]:
            strings.append(text)
        offset += size
    return strings
