"""List the families, and find the one that describes a checkpoint."""

from __future__ import annotations

from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import ExportError, UnknownArchitecture
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.families import gemma2, gemma3, llama, phi3, qwen2, qwen3
from edgesdk_export.families.family import Family, GgufFamily, Read
from edgesdk_export.families.optimum_hint import optimum_hint

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    phi3.FAMILY,
)


def reader_of(checkpoint: Checkpoint) -> Read:
    """Find the reader of a checkpoint's family for the container that it came in.

    Raises:
        UnknownArchitecture: no family describes it.
    """
    gguf = checkpoint.container == "gguf"
    readers: dict[str, Read] = {}
    for family in FAMILIES:
        if not gguf:
            readers.update(dict.fromkeys(family.model_types, family.read_config))
        elif family.gguf is not None:
            readers.update(dict.fromkeys(family.gguf.architectures, family.gguf.read))
    key = "general.architecture" if gguf else "model_type"
    name = checkpoint.config.get(key)
    found = readers.get(name) if isinstance(name, str) else None
    if found is None:
        raise UnknownArchitecture(
            f"{checkpoint.path}: no family describes {key} {name!r}; known are "
            f"{', '.join(sorted(readers))}.",
            hint=_unknown_hint(name, gguf=gguf),
        )
    return found


def _unknown_hint(name: object, *, gguf: bool) -> str:
    if gguf:
        return (
            "Run the .gguf itself (edgesdk run FILE), or export from the original folder with"
            " safetensors."
        )
    return optimum_hint(name) or "Neither does optimum; export a model of a known architecture."


def gguf_family(spec: DecoderSpec) -> GgufFamily | None:
    """The GGUF side of a decoder's family; None = it has none."""
    return next((family.gguf for family in FAMILIES if family.name == spec.family), None)


def require_gguf_family(spec: DecoderSpec) -> GgufFamily:
    """The GGUF side of a decoder's family.

    Raises:
        ExportError: it has none.
    """
    found = gguf_family(spec)
    if found is None:
        raise ExportError(
            f"The family {spec.family!r} cannot be exported to GGUF.",
            hint="Export to ONNX instead.",
        )
    return found
