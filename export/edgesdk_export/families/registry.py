"""Which file knows which architecture. Families are imported when one is asked for."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from edgesdk.errors import UnknownArchitecture
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families.mapping import CheckpointMapping

# One line per family: its file, then what config.json (`model_type`) and GGUF
# (`general.architecture`) call it.
_FAMILIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "llama": (("llama", "mistral"), ("llama",)),
    "qwen2": (("qwen2",), ("qwen2",)),
    "qwen3": (("qwen3",), ("qwen3",)),
    "gemma2": (("gemma2",), ("gemma2",)),
    "gemma3": (("gemma3", "gemma3_text"), ("gemma3",)),
    "phi3": (("phi3",), ("phi3",)),
}


class Family(Protocol):
    """What each family file offers. Both raise `ConfigMismatch` for what they cannot express."""

    def from_config(self, checkpoint: Checkpoint) -> CheckpointMapping:
        """Understand a checkpoint that came with a config.json."""

    def from_gguf(self, checkpoint: Checkpoint) -> CheckpointMapping:
        """Understand a GGUF."""


def family_of(checkpoint: Checkpoint) -> Family:
    """The family file that describes a checkpoint.

    Raises:
        UnknownArchitecture: none does.
    """
    gguf = checkpoint.container == "gguf"
    key = "general.architecture" if gguf else "model_type"
    name = checkpoint.config.get(key)
    for module, (model_types, architectures) in _FAMILIES.items():
        if name in (architectures if gguf else model_types):
            return cast("Family", importlib.import_module(f"edgesdk_export.families.{module}"))
    known = sorted({name for line in _FAMILIES.values() for name in line[1 if gguf else 0]})
    raise UnknownArchitecture(
        f"{checkpoint.path}: no family describes {key} {name!r}; known are {', '.join(known)}.",
        hint="Try '--via optimum'.",
    )
