"""Number formats: how a matrix of weights becomes bytes, one class each."""

from edgesdk_quantize.formats.blocks import BlockFormat, Packed
from edgesdk_quantize.formats.coded import CodedScales
from edgesdk_quantize.formats.int4 import Int4, Int4Symmetric
from edgesdk_quantize.formats.int8 import Int8, Int8Symmetric
from edgesdk_quantize.formats.offset import Int4Offset

__all__ = [
    "BlockFormat",
    "CodedScales",
    "Int4",
    "Int4Offset",
    "Int4Symmetric",
    "Int8",
    "Int8Symmetric",
    "Packed",
]
