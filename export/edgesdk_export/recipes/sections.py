"""Define the sections of a recipe: one for each bundle format, and one for calibration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from edgesdk_quantize.formats import BlockFormat, CodedScales, FloatFormat
from edgesdk_quantize.formats.registry import (
    embedding_format,
    embedding_formats,
    formats_by_bits,
    select_format,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from edgesdk_export.gguf.file_types import DEFAULT_TYPES, FileType, file_type_named, file_type_names
from edgesdk_export.litert.scheme import WEIGHT_BITS, TfliteScheme, tflite_scheme
from edgesdk_export.onnx.scheme import OnnxFormat, WeightScheme, default_bits, scheme_name


class RecipeSection(BaseModel):
    """A part of a recipe: frozen, and nothing in it is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _known_bits(bits: Any) -> Any:
    whole = formats_by_bits()
    number = isinstance(bits, int | float) and not isinstance(bits, bool)
    if bits == "auto" or (number and (bits in whole or 4 < bits < 16)):
        return bits
    raise ValueError(
        f'{bits!r} is none of "auto", {", ".join(map(str, whole))}, nor a number between 4 and 16'
        " such as 5.5"
    )


def _known_tflite_bits(bits: Any) -> Any:
    if bits == "auto" or (bits in WEIGHT_BITS and not isinstance(bits, bool)):
        return bits
    raise ValueError(f'{bits!r} is none of "auto", {", ".join(map(str, WEIGHT_BITS))}')


def _known_embedding(name: str) -> str:
    if name != "auto" and name not in embedding_formats():
        raise ValueError(f"{name!r} is none of auto, {', '.join(embedding_formats())}")
    return name


def _known_type(name: str) -> str:
    if name != "auto" and name not in file_type_names():
        raise ValueError(f"{name!r} is none of auto, {', '.join(file_type_names())}")
    return name


class OnnxRecipe(RecipeSection):
    """How an ONNX bundle's weights are stored.

    Attributes:
        bits: of a weight; "auto": by the model's size. Any other number than those of formats (4,
            8, 16 and 32) is a budget: the stored bits of a weight over the whole model, scales and
            all. Matrices then get different formats by what they lose in each, and `block` and
            `symmetric` do not count.
        block: how many weights share a scale.
        symmetric: whether there are no zero-points.
        scales: of the blocks: "float32", or "uint8": multiples of one float32 for each row, which
            takes 0.75 bits a weight less at a block of 32 and gives the same speed.
        offsets: whether blocks of 4 bits have a real offset in 8 bits in place of a zero-point:
            as ggml's Q4_K, half the error of a zero-point on weights that were rounded so before.
        embedding: of embedding and head; "auto": the format of the other weights if they are
            floats, else "int8-symmetric"; beside blocks with offsets an embedding that is only
            looked up, the head being a matrix of its own, has 4 bits too.
        method: "nearest": each block by itself. "weighted": searched under importance weights.
            "gptq": that, and later weights make up for the error of earlier ones.
        awq: whether channels with large inputs are scaled up before they are rounded.
        sweeps: of "gptq": how often scales and codes are gone through afterwards.
    """

    bits: Annotated[Literal["auto"] | int | float, PlainValidator(_known_bits)] = "auto"
    block: Literal[16, 32, 64, 128] = 32
    symmetric: bool = False
    scales: Literal["float32", "uint8"] = "float32"
    offsets: bool = False
    embedding: Annotated[str, AfterValidator(_known_embedding)] = "auto"
    method: str = "nearest"
    awq: bool = False
    sweeps: Annotated[int, Field(ge=0, le=100)] = 0

    @property
    def budget(self) -> float | None:
        """Stored bits of a weight where formats are mixed; else None."""
        mixed = self.bits != "auto" and self.bits not in formats_by_bits()
        return float(self.bits) if mixed else None

    def resolved(self, parameters: int) -> OnnxRecipe:
        """With the bits that "auto" means for a model of so many parameters."""
        if self.bits != "auto":
            return self
        return self.model_copy(update={"bits": default_bits(parameters)})

    def for_static(self, parameters: int) -> OnnxRecipe:
        """The same for graphs of fixed shapes: there is nothing but symmetric blocks, and "auto"
        means 16 bits for a small model, which an NPU computes in anyway, unless the method looks
        for codes."""
        bits: int | float | str = self.bits
        if bits == "auto":
            whole = self.method == "nearest" and default_bits(parameters) > 4
            bits = 16 if whole else 4
        fixed = {"bits": bits, "symmetric": True, "scales": "float32", "offsets": False}
        return self.model_copy(update=fixed)

    def scheme(self, parameters: int) -> WeightScheme:
        """The formats of a model of so many parameters; where they are mixed, of the embedding."""
        bits = self.resolved(parameters).bits
        whole = 4 if self.budget is not None else int(bits)
        linear = self._stored(
            select_format(whole, block=self.block, symmetric=self.symmetric, offsets=self.offsets)
        )
        lookup = None
        if isinstance(linear, BlockFormat) and linear.has_offsets and self.embedding == "auto":
            plain = select_format(whole, block=self.block, symmetric=self.symmetric)
            lookup = self._stored(plain)
        return WeightScheme(scheme_name(linear), linear, self._embedding(linear), lookup)

    def _embedding(self, linear: OnnxFormat) -> OnnxFormat:
        if self.embedding == "auto" and isinstance(linear, FloatFormat):
            return linear
        name = "int8-symmetric" if self.embedding == "auto" else self.embedding
        return self._stored(embedding_format(name, block=self.block))

    def _stored(self, fmt: OnnxFormat) -> OnnxFormat:
        """The format, with scales as the recipe has them."""
        if isinstance(fmt, FloatFormat) or fmt.has_coded_scales or self.scales == "float32":
            return fmt
        return CodedScales(fmt)


class GgufRecipe(RecipeSection):
    """How a GGUF bundle's weights are stored.

    Attributes:
        type: a mixture by llama-quantize's name, in lower case; "auto": by the model's size.
        method: "nearest": each block by itself. "weighted": with importance weights.
    """

    type: Annotated[str, AfterValidator(_known_type)] = "auto"
    method: str = "nearest"

    def resolved(self, parameters: int) -> GgufRecipe:
        """With the type that "auto" means for a model of so many parameters."""
        if self.type != "auto":
            return self
        return self.model_copy(update={"type": DEFAULT_TYPES[default_bits(parameters)]})

    def file_type(self, parameters: int) -> FileType:
        """The mixture for a model of so many parameters."""
        return file_type_named(self.resolved(parameters).type)


class LitertRecipe(RecipeSection):
    """How the weights of a `.tflite` are stored.

    Attributes:
        bits: of a weight: 8 with a scale for each row, 4 with one for each block of 32, 32 for
            floats; "auto": by the model's size.
        method: "nearest": each row or block by itself.
    """

    bits: Annotated[Literal["auto"] | int, PlainValidator(_known_tflite_bits)] = "auto"
    method: str = "nearest"

    def resolved(self, parameters: int) -> LitertRecipe:
        """With the bits that "auto" means for a model of so many parameters."""
        if self.bits != "auto":
            return self
        return self.model_copy(update={"bits": default_bits(parameters)})

    def scheme(self, parameters: int) -> TfliteScheme:
        """The formats of a model of so many parameters."""
        return tflite_scheme(int(self.resolved(parameters).bits))


class StaticRecipe(RecipeSection):
    """The sizes of graphs of fixed shapes, as targets with an NPU have them; their weights are
    stored as `OnnxRecipe` says, as far as the target can.

    Attributes:
        prefill: tokens of a prompt that are computed at a time: a power of two from 2 to 256.
        window: tokens that a conversation may have; "auto": 1024, or the model's own context where
            that is shorter.
        activations: "uint16": the inputs of matrices are rounded to grids that a text gives, and
            there is one scale for each output of a matrix; "float16": they are not rounded;
            "auto": as the target runs weights of that many bits.
    """

    activations: Literal["auto", "float16", "uint16"] = "auto"
    prefill: int = 128
    window: Annotated[int, Field(ge=2, le=2**20)] | Literal["auto"] = "auto"


class CalibrationRecipe(RecipeSection):
    """Settings of methods that run a text.

    Attributes:
        tokens: how much of the text.
    """

    tokens: Annotated[int, Field(ge=512, le=2**24)] = 8192
