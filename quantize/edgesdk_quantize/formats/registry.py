"""Look up number formats: the only door for recipes, calibration and command lines.

A new block format is one subclass of `BlockFormat` and its place in `_BUILT_IN`. What it says of
itself is what everything else reads: recipes take it by `recipe_bits`, formats are mixed in its
`mix_blocks`, a budget counts its `stored_bits`, the self-test allows its `expected_error`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

from edgesdk.errors import RequestError
from edgesdk_quantize.formats.blocks import BlockFormat
from edgesdk_quantize.formats.floats import FP16, FP32, FloatFormat
from edgesdk_quantize.formats.ggml import GGML_FORMATS, GgmlFormat
from edgesdk_quantize.formats.int4 import Int4, Int4Symmetric
from edgesdk_quantize.formats.int4_offset import Int4Offset
from edgesdk_quantize.formats.int8 import Int8, Int8Symmetric
from edgesdk_quantize.formats.litert import INT4_LITERT, INT8_LITERT, LitertFormat
from edgesdk_quantize.formats.qdq import A8W8, A16W4, A16W8, W4, W8, Qdq

NumberFormat: TypeAlias = BlockFormat | FloatFormat | GgmlFormat | LitertFormat | Qdq

BLOCK_SIZES = (16, 32, 64, 128)
DEFAULT_BLOCK = 32

# Called with a block size.
BlockFormatClass: TypeAlias = Callable[[int], BlockFormat]

_BUILT_IN: tuple[BlockFormatClass, ...] = (Int4, Int4Offset, Int4Symmetric, Int8, Int8Symmetric)

_formats: dict[str, NumberFormat] = {}
_block_formats: dict[str, BlockFormatClass] = {}

# "int4" and "int8-symmetric-64" (blocks of 32 where no size is named), "q4_k", "a16w8", "fp16".
FORMATS: Mapping[str, NumberFormat] = MappingProxyType(_formats)


def register(kind: BlockFormatClass) -> None:
    """Make a block format known under its name, and under its name with each block size."""
    default = kind(DEFAULT_BLOCK)
    _block_formats[default.name] = kind
    _formats[default.name] = default
    _formats.update({f"{default.name}-{size}": kind(size) for size in BLOCK_SIZES})


def format_named(name: str) -> NumberFormat:
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


def formats_by_bits() -> dict[int, BlockFormat | FloatFormat]:
    """What a recipe's `bits` means when it says nothing else: 4 is "int4", 16 is "fp16"."""
    found: dict[int, BlockFormat | FloatFormat] = {}
    for fmt in _defaults():
        if fmt.has_zero_points and not fmt.has_offsets:
            found.setdefault(fmt.recipe_bits, fmt)
    found.update({fmt.bits: fmt for fmt in FORMATS.values() if isinstance(fmt, FloatFormat)})
    return dict(sorted(found.items()))


def select_format(
    bits: int, *, block: int, symmetric: bool = False, offsets: bool = False
) -> BlockFormat | FloatFormat:
    """The format that a recipe asks for.

    Args:
        bits: a key of `formats_by_bits`.
        symmetric: without zero-points.
        offsets: with real offsets, where there is such a format of so many bits.

    Raises:
        RequestError: there is no such format.
    """
    plain = formats_by_bits().get(bits)
    if isinstance(plain, FloatFormat):
        return plain
    kinds = [fmt for fmt in _defaults() if fmt.recipe_bits == bits]
    chosen = [fmt for fmt in kinds if offsets and fmt.has_offsets] or [
        fmt for fmt in kinds if not fmt.has_offsets and fmt.has_zero_points != symmetric
    ]
    if not chosen:
        which = "symmetric format" if symmetric else "format"
        raise RequestError(f"There is no {which} of {bits} bits.")
    return _block_formats[chosen[0].name](block)


def mixable_formats(*, offsets: bool) -> tuple[BlockFormat, ...]:
    """The formats that a matrix may have where formats are mixed: with offsets, or without."""
    return tuple(
        _block_formats[fmt.name](size)
        for fmt in _defaults()
        if fmt.has_offsets == offsets
        for size in fmt.mix_blocks
    )


def embedding_formats() -> tuple[str, ...]:
    """Names of the formats that an embedding and a head may be stored in."""
    names = [fmt.name for fmt in _defaults() if fmt.holds_embedding]
    return (*names, *(fmt.name for fmt in FORMATS.values() if isinstance(fmt, FloatFormat)))


def embedding_format(name: str, *, block: int) -> BlockFormat | FloatFormat:
    """The format of a name that `embedding_formats` has."""
    fmt = FORMATS[name]
    return fmt if isinstance(fmt, FloatFormat) else _block_formats[name](block)


def _defaults() -> Iterator[BlockFormat]:
    """Every block format in blocks of the default size."""
    return (kind(DEFAULT_BLOCK) for kind in _block_formats.values())


for _kind in _BUILT_IN:
    register(_kind)
_PLAIN: tuple[NumberFormat, ...] = (
    FP32,
    FP16,
    *GGML_FORMATS,
    A8W8,
    A16W8,
    A16W4,
    W8,
    W4,
    INT8_LITERT,
    INT4_LITERT,
)
_formats.update({fmt.name.lower(): fmt for fmt in _PLAIN})
