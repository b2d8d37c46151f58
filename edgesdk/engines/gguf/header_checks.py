"""Refuses GGUF headers over which llama.cpp would abort the process."""

from __future__ import annotations

import math
from pathlib import Path

from edgesdk.errors import EngineError
from edgesdk.system.gguf_header import Value, read_metadata

_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS in llama-hparams.h
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")


def check_limits(path: Path, texts: frozenset[bytes]) -> None:
    """Refuse numbers and vocabularies that llama.cpp does not survive.

    Args:
        texts: the vocabulary.

    Raises:
        EngineError: there is one, or the header is damaged in another way.
    """
    values = read_metadata(path).values
    architecture = values.get("general.architecture", "")
    layers = values.get(f"{architecture}.block_count")
    if isinstance(layers, int) and not 1 <= layers <= _MAX_LAYERS:
        raise _wrong(path, "layers", layers)
    for key in _EPSILONS:
        epsilon = values.get(f"{architecture}.{key}")
        if isinstance(epsilon, float) and not (math.isfinite(epsilon) and epsilon >= 0):
            raise _wrong(path, "as the epsilon of its norms", epsilon)
    # SentencePiece's: what no token spells is spelled in bytes, each of which is looked up.
    if texts and values.get("tokenizer.ggml.model") == "llama":
        missing = [b for b in range(256) if not texts & {b"<0x%02X>" % b, bytes([b])}]
        if missing:
            raise EngineError(
                f"The vocabulary of {path} is damaged: it has no token for the byte {missing[0]}.",
                hint="Download or export the model again.",
            )


def _wrong(path: Path, what: str, value: Value) -> EngineError:
    return EngineError(
        f"The GGUF header of {path} is damaged: it says {value} {what}.",
        hint="Download or export the model again.",
    )
