"""Refuse GGUF headers that would make llama.cpp abort the process instead of refusing the file.

llama.cpp checks most of a file itself and says what is wrong. It asserts, however, that no two
tokens have the same text, and it takes some numbers for granted.
"""

from __future__ import annotations

import collections
import functools
import math
from pathlib import Path

from edgesdk.errors import EngineError
from edgesdk.system.gguf_header import (
    GgufArray,
    GgufError,
    GgufHeader,
    NotGguf,
    Scalar,
    read_gguf_header,
)

_TOKENS = "tokenizer.ggml.tokens"
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS in llama-hparams.h
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
HINT = "Download or export the model again."


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file, or give the one that `remembered` holds.

    Loading asks twice: what the model takes in memory, and whether llama.cpp survives it.

    Raises:
        EngineError: the file cannot be read, is not a GGUF file, or its header is damaged.
    """
    try:
        found = path.stat()
        return remembered(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror}.") from None
    except NotGguf as error:
        raise EngineError(f"{path} is not a GGUF file: {error}.", hint=HINT) from None
    except GgufError as error:
        raise EngineError(f"The GGUF header of {path} is damaged: {error}.", hint=HINT) from None


@functools.lru_cache(maxsize=1)
def remembered(path: Path, size: int, modified_ns: int) -> GgufHeader:
    """The header of the file that was read last, until `remembered.cache_clear`."""
    return read_gguf_header(path)


def check_header(header: GgufHeader, path: Path) -> None:
    """Refuse numbers and vocabularies that llama.cpp does not survive.

    Args:
        path: of the file, for the error.

    Raises:
        EngineError: there is one.
    """
    values = header.metadata
    architecture = values.get("general.architecture", "")
    layers = values.get(f"{architecture}.block_count")
    if isinstance(layers, int) and not 1 <= layers <= _MAX_LAYERS:
        raise _wrong_number(path, "layers", layers)
    for key in _EPSILONS:
        epsilon = values.get(f"{architecture}.{key}")
        if isinstance(epsilon, float) and not (math.isfinite(epsilon) and epsilon >= 0):
            raise _wrong_number(path, "as the epsilon of its norms", epsilon)
    texts = _vocabulary(header, path)
    # SentencePiece's: what no token spells is spelled in bytes, each of which is looked up.
    if texts and values.get("tokenizer.ggml.model") == "llama":
        missing = [b for b in range(256) if not texts & {b"<0x%02X>" % b, bytes([b])}]
        if missing:
            raise EngineError(
                f"The vocabulary of {path} is damaged: it has no token for the byte {missing[0]}.",
                hint=HINT,
            )


def _vocabulary(header: GgufHeader, path: Path) -> frozenset[bytes]:
    """The texts of the tokens, each of which must be there once."""
    array = header.metadata.get(_TOKENS)
    if not isinstance(array, GgufArray) or not array.is_texts:
        return frozenset()
    # llama.cpp reads each text up to its first NUL, and gives empty ones a name of their own.
    found = [text for raw in array.texts() if (text := raw.partition(b"\0")[0])]
    texts = frozenset(found)
    if len(texts) != len(found):
        twice = collections.Counter(found).most_common(1)[0][0]
        raise EngineError(
            f"The vocabulary of {path} is damaged: it has the token {twice!r} twice.", hint=HINT
        )
    return texts


def _wrong_number(path: Path, what: str, value: Scalar) -> EngineError:
    return EngineError(f"The GGUF header of {path} is damaged: it says {value} {what}.", hint=HINT)
