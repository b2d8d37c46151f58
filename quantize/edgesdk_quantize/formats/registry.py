"""Formats by name, for recipes and command lines."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from edgesdk.errors import RequestError
from edgesdk_quantize.formats.blocks import BlockFormat
from edgesdk_quantize.formats.ggml import GGML_FORMATS, GgmlFormat
from edgesdk_quantize.formats.int4 import Int4, Int4Symmetric
from edgesdk_quantize.formats.int4_offset import Int4Offset
from edgesdk_quantize.formats.int8 import Int8, Int8Symmetric
from edgesdk_quantize.formats.qdq import A8W8, A16W4, A16W8, Qdq

BLOCK_SIZES = (16, 32, 64, 128)
DEFAULT_BLOCK = 32

_BLOCK_FORMATS: tuple[BlockFormat, ...] = tuple(
    kind(block=block)
    for kind in (Int4, Int4Offset, Int4Symmetric, Int8, Int8Symmetric)
    for block in BLOCK_SIZES
)

# "int4" and "int8-symmetric-64" (blocks of 32 where no size is named), "q4_k", "a16w8".
FORMATS: Mapping[str, BlockFormat | GgmlFormat | Qdq] = MappingProxyType(
    {
        **{fmt.name: fmt for fmt in _BLOCK_FORMATS if fmt.block == DEFAULT_BLOCK},
        **{f"{fmt.name}-{fmt.block}": fmt for fmt in _BLOCK_FORMATS},
        **{fmt.name.lower(): fmt for fmt in GGML_FORMATS},
        **{fmt.name: fmt for fmt in (A8W8, A16W8, A16W4)},
    }
)


def format_named(name: str) -> BlockFormat | GgmlFormat | Qdq:
    """The format of that name, in upper or lower case.

    Raises:
        RequestError: there is none; the hint has the nearest names.
    """
    found = FORMATS.get(name.lower())
    if found is not None:
        return found
    near = difflib.get_close_matches(name.lower(), FORMATS, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "Formats: " + ", ".join(FORMATS) + "."
    raise RequestError(f"There is no number format {name!r}.", hint=hint)
