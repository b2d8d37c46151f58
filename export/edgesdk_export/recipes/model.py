"""What a recipe says: how the weights of a model are stored, for each bundle format."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from edgesdk_quantize.formats import BlockFormat, Int4, Int4Symmetric, Int8, Int8Symmetric
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from edgesdk.errors import ExportError, RequestError
from edgesdk_export.gguf.mixes import FileType, file_type_named, file_type_names
from edgesdk_export.onnx.scheme import FloatFormat, WeightScheme, default_bits

BundleFormat = Literal["onnx", "gguf"]

_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
_TYPES = {8: "q8_0", 4: "q4_k_m"}
# By bundle format: how weights can be rounded.
METHODS: dict[BundleFormat, tuple[str, ...]] = {
    "onnx": ("nearest", "importance", "gptq"),
    "gguf": ("nearest", "importance"),
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _known_type(name: str) -> str:
    if name != "auto" and name not in file_type_names():
        raise ValueError(f"{name!r} is none of auto, {', '.join(file_type_names())}")
    return name


class OnnxRecipe(_Record):
    """How an ONNX bundle's weights are stored.

    Attributes:
        bits: of a weight; "auto": by the model's size.
        block: how many weights share a scale.
        symmetric: whether there are no zero-points.
        embedding: of embedding and head; "auto": "int8-symmetric" beside integers, else the
            format of the other weights.
        method: a name of `METHODS`.
        damping: of "gptq": part of the mean second moment that is added to each.
        sweeps: of "gptq": how often scales and codes are gone through afterwards.
    """

    bits: Literal["auto", 4, 8, 16, 32] = "auto"
    block: Literal[16, 32, 64, 128] = 32
    symmetric: bool = False
    embedding: Literal["auto", "int8", "int8-symmetric", "fp16", "fp32"] = "auto"
    method: str = "nearest"
    damping: Annotated[float, Field(gt=0, le=1)] = 0.01
    sweeps: Annotated[int, Field(ge=0, le=100)] = 0

    def resolved(self, parameters: int) -> OnnxRecipe:
        """With the bits that "auto" means for a model of so many parameters."""
        if self.bits != "auto":
            return self
        return self.model_copy(update={"bits": default_bits(parameters)})

    def scheme(self, parameters: int) -> WeightScheme:
        """The formats of a model of so many parameters."""
        bits = self.resolved(parameters).bits
        linear: BlockFormat | FloatFormat
        if bits == 32:
            name, linear = "fp32", "fp32"
        elif bits == 16:
            name, linear = "fp16", "fp16"
        elif bits == 8:
            name, linear = "int8", (Int8Symmetric if self.symmetric else Int8)(self.block)
        else:
            name, linear = "int4", (Int4Symmetric if self.symmetric else Int4)(self.block)
        return WeightScheme(name, linear, self._embedding(linear))

    def _embedding(self, linear: BlockFormat | FloatFormat) -> BlockFormat | FloatFormat:
        if self.embedding in ("fp16", "fp32"):
            return self.embedding
        if self.embedding == "int8":
            return Int8(self.block)
        if self.embedding == "auto" and isinstance(linear, str):
            return linear
        return Int8Symmetric(self.block)


class GgufRecipe(_Record):
    """How a GGUF bundle's weights are stored.

    Attributes:
        type: a mixture by llama-quantize's name, in lower case; "auto": by the model's size.
        method: a name of `METHODS`.
    """

    type: Annotated[str, AfterValidator(_known_type)] = "auto"
    method: str = "nearest"

    def resolved(self, parameters: int) -> GgufRecipe:
        """With the type that "auto" means for a model of so many parameters."""
        if self.type != "auto":
            return self
        return self.model_copy(update={"type": _TYPES[default_bits(parameters)]})

    def file_type(self, parameters: int) -> FileType:
        """The mixture for a model of so many parameters."""
        return file_type_named(self.resolved(parameters).type)


class CalibrationRecipe(_Record):
    """What methods that look at a text are given.

    Attributes:
        tokens: how much of the text.
    """

    tokens: Annotated[int, Field(ge=512, le=2**24)] = 8192


class Recipe(_Record):
    """A whole recipe.

    Attributes:
        name: what messages call it.
        summary: one line for people.
        onnx, gguf: None = no bundle of that format can be made with it.
        calibration: for methods that look at a text; None = its defaults.
    """

    name: str
    summary: str = ""
    onnx: OnnxRecipe | None = None
    gguf: GgufRecipe | None = None
    calibration: CalibrationRecipe | None = None

    def require(self, form: BundleFormat) -> None:
        """Check that bundles of a format can be made with this recipe.

        Raises:
            RequestError: it says nothing of that format.
            ExportError: it names a method that there is not.
        """
        section = self.section(form)
        if section.method not in METHODS[form]:
            raise ExportError(
                f"The recipe {self.name}: the method {section.method!r} is not available for "
                f"{form}; available: {', '.join(METHODS[form])}."
            )

    def calibrates(self, form: BundleFormat) -> bool:
        """Whether the method looks at what the model computes."""
        return self.section(form).method != "nearest"

    def asking_for(self, form: BundleFormat, weights: str) -> Recipe:
        """The same with other weights: "fp32", "fp16", "int8", "int4" in ONNX, a type in GGUF.

        Raises:
            RequestError: there are no such weights, or it says nothing of that format.
        """
        if form == "gguf":
            change: dict[str, object] = {"type": file_type_named(weights).name}
        else:
            change = {"bits": _BITS[WeightScheme.named(weights).name]}
        return self.model_copy(update={form: self.section(form).model_copy(update=change)})

    def onnx_scheme(self, parameters: int) -> WeightScheme:
        """How an ONNX model of so many parameters is stored; see `require`."""
        section = self.section("onnx")
        assert isinstance(section, OnnxRecipe)
        return section.scheme(parameters)

    def gguf_type(self, parameters: int) -> FileType:
        """How a GGUF of so many parameters is stored; see `require`."""
        section = self.section("gguf")
        assert isinstance(section, GgufRecipe)
        return section.file_type(parameters)

    def only(self, form: BundleFormat, parameters: int) -> Recipe:
        """What is done to a bundle of that format, with nothing left to be decided."""
        section = self.section(form).resolved(parameters)
        calibration = (self.calibration or CalibrationRecipe()) if self.calibrates(form) else None
        return Recipe.model_construct(
            name=self.name,
            summary=self.summary,
            onnx=section if isinstance(section, OnnxRecipe) else None,
            gguf=section if isinstance(section, GgufRecipe) else None,
            calibration=calibration,
        )

    def to_toml(self) -> str:
        """The recipe as TOML; the same recipe gives the same text."""
        lines = [f"name = {_toml(self.name)}", f"summary = {_toml(self.summary)}"]
        sections = {"onnx": self.onnx, "gguf": self.gguf, "calibration": self.calibration}
        for name, section in sections.items():
            if section is not None:
                lines += ["", f"[{name}]"]
                lines += [f"{key} = {_toml(value)}" for key, value in section.model_dump().items()]
        return "\n".join(lines) + "\n"

    def section(self, form: BundleFormat) -> OnnxRecipe | GgufRecipe:
        """What it says of a format.

        Raises:
            RequestError: nothing.
        """
        section = self.onnx if form == "onnx" else self.gguf
        if section is None:
            raise RequestError(
                f"The recipe {self.name} has no section [{form}].",
                hint="Add one, or ask for another --format.",
            )
        return section


def _toml(value: str | float) -> str:
    """JSON's strings, numbers and booleans are TOML's, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
