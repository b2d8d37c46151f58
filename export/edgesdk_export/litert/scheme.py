"""Say which number format each weight of a `.tflite` is stored in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from edgesdk_quantize.formats import FP32, FloatFormat
from edgesdk_quantize.formats.litert import INT4_LITERT, INT8_LITERT, LitertFormat

from edgesdk.errors import RequestError

TfliteFormat: TypeAlias = FloatFormat | LitertFormat


@dataclass(frozen=True)
class TfliteScheme:
    """Formats of a decoder's matrices; norms, biases and rope tables are float32.

    Attributes:
        linear: of the linear layers.
        embedding: of the embedding and the head (one tensor where they are tied). LiteRT looks up
            no rows of 4-bit blocks.
    """

    linear: TfliteFormat
    embedding: TfliteFormat

    @property
    def method(self) -> str:
        """How weights are rounded, in words for the manifest."""
        if isinstance(self.linear, FloatFormat):
            return f"stored as {self.linear.name}"
        if self.linear.block is None:
            return "FULLY_CONNECTED, a scale for each row, round to nearest"
        return (
            f"FULLY_CONNECTED, block {self.linear.block}, scales in float16 searched for the least"
            " squared error"
        )

    def format_of(self, name: str, columns: int) -> TfliteFormat:
        """The format of a matrix by its canonical name; rows that blocks do not divide have one
        scale each."""
        if name in ("embed.weight", "head.weight"):
            return self.embedding
        block = None if isinstance(self.linear, FloatFormat) else self.linear.block
        return INT8_LITERT if block is not None and columns % block else self.linear


_SCHEMES = {
    4: TfliteScheme(INT4_LITERT, INT8_LITERT),
    8: TfliteScheme(INT8_LITERT, INT8_LITERT),
    32: TfliteScheme(FP32, FP32),
}
_NAMES = {"int4": 4, "int8": 8, "fp32": 32}
WEIGHT_BITS = tuple(_SCHEMES)


def tflite_scheme(bits: int) -> TfliteScheme:
    """The scheme of so many bits a weight, one of `WEIGHT_BITS`."""
    return _SCHEMES[bits]


def tflite_bits(name: str) -> int:
    """The bits of a scheme by its name.

    Raises:
        RequestError: there is none of that name.
    """
    if name not in _NAMES:
        raise RequestError(
            f"There is no weight format {name!r} for LiteRT.",
            hint=f"Choose one of {', '.join(_NAMES)}.",
        )
    return _NAMES[name]


def tflite_scheme_names() -> dict[str, str]:
    """The names of the schemes by their bits: "8" is "int8"."""
    return {str(bits): name for name, bits in _NAMES.items()}
