"""Number formats: how a matrix of weights becomes bytes, one class each."""

from edgesdk_quantize.formats.blocks import BlockFormat, PackedMatrix
from edgesdk_quantize.formats.coded_scales import CodedScales
from edgesdk_quantize.formats.floats import FP16, FP32, FloatFormat
from edgesdk_quantize.formats.int4 import Int4, Int4Symmetric
from edgesdk_quantize.formats.int4_offset import Int4Offset
from edgesdk_quantize.formats.int8 import Int8, Int8Symmetric

__all__ = [
    "FP16",
    "FP32",
    "BlockFormat",
    "CodedScales",
    "FloatFormat",
    "Int4",
    "Int4Offset",
    "Int4Symmetric",
    "Int8",
    "Int8Symmetric",
    "PackedMatrix",
]
