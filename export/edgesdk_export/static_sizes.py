"""Choose the sizes of graphs of fixed shapes, and refuse those that cannot be."""

from __future__ import annotations

from typing import Literal

from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import RequestError

DEFAULT_PREFILL = 128
_DEFAULT_WINDOW = 1024
_MAX_PREFILL = 256


def static_shape(
    spec: DecoderSpec,
    *,
    prefill: int,
    window: int | None,
    logits_rows: int = _MAX_PREFILL,
    dtype: Literal["float16", "float32"] = "float16",
) -> StaticShape:
    """The sizes of a decoder's graphs.

    Args:
        prefill: tokens at a time.
        window: past tokens; None = 1024, or the model's context where that is shorter.
        logits_rows: of how many tokens of a prefill there are logits, at most.

    Raises:
        RequestError: the model has no such window, or a number is out of range.
    """
    if window is not None and window > spec.context_length:
        raise RequestError(
            f"A window of {window:,} tokens is larger than the model's context of"
            f" {spec.context_length:,}.",
            hint=f"Choose --window {spec.context_length} or less.",
        )
    slots = min(_DEFAULT_WINDOW, spec.context_length) if window is None else window
    largest = min(_MAX_PREFILL, slots)
    if prefill & (prefill - 1) or not 2 <= prefill <= largest:
        raise RequestError(
            f"A prefill of {prefill} tokens at a time is not a power of two from 2 to {largest}.",
            hint="Choose --prefill 64, for instance.",
        )
    return StaticShape(
        prefill_tokens=prefill,
        window=slots,
        logits_rows=min(logits_rows, prefill),
        dtype=dtype,
    )
