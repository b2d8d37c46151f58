"""What a family file hands back: a spec, and where each canonical weight comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgesdk_export.spec import DecoderSpec


@dataclass(frozen=True)
class Source:
    """Where a canonical weight comes from.

    Attributes:
        tensor: its name in the checkpoint.
        start, stop: its rows in that tensor, where several weights are fused into one; None =
            all of them.
        interleaved_head: head size of query or key rows that stand in the interleaved rope order
            (llama.cpp's "llama" architecture) and must be put into the half-split one.
        add: what to add to each value (gemma's safetensors store `gain - 1`).
    """

    tensor: str
    start: int | None = None
    stop: int | None = None
    interleaved_head: int | None = None
    add: float = 0.0


@dataclass(frozen=True)
class Reading:
    """A checkpoint, understood.

    Attributes:
        sources: by canonical name; exactly the names of `canonical_shapes(spec)`.
        head: the tensor that may repeat the embedding matrix though the head is tied; a
            checkpoint whose two differ is refused.
        settled: tensors that are no weights and have been taken into the spec, or that follow
            from it (rotary frequencies). Names, or patterns with `*`.
    """

    spec: DecoderSpec
    sources: Mapping[str, Source]
    head: str
    settled: tuple[str, ...] = ()
