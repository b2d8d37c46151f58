"""Numbers in a GGUF header that llama.cpp asserts, and would abort the process over."""

from __future__ import annotations

import math
from pathlib import Path

from edgesdk.engines.gguf.metadata import Value, read_metadata
from edgesdk.errors import EngineError

_MOST_LAYERS = 512  # LLAMA_MAX_LAYERS in llama-hparams.h
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")


def check_limits(path: Path) -> None:
    """Refuse a number of layers, or an epsilon of norms, that llama.cpp does not survive.

    Raises:
        EngineError: there is one, or the header is damaged in another way.
    """
    values = read_metadata(path).values
    architecture = values.get("general.architecture", "")
    layers = values.get(f"{architecture}.block_count")
    if isinstance(layers, int) and not 1 <= layers <= _MOST_LAYERS:
        raise _wrong(path, "layers", layers)
    for key in _EPSILONS:
        epsilon = values.get(f"{architecture}.{key}")
        if isinstance(epsilon, float) and not (math.isfinite(epsilon) and epsilon >= 0):
            raise _wrong(path, "as the epsilon of its norms", epsilon)


def _wrong(path: Path, what: str, value: Value) -> EngineError:
    return EngineError(
        f"The GGUF header of {path} is damaged: it says {value} {what}.",
        hint="Download or export the model again.",
    )
