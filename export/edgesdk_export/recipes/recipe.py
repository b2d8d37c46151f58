"""Load recipes, and say how the weights of a model are stored for each bundle format."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any

from edgesdk_quantize.formats.registry import formats_by_bits
from pydantic import BaseModel, ValidationError

from edgesdk.bundle.manifest import BundleFormat
from edgesdk.errors import ExportError, RequestError
from edgesdk_export.calibration.calibrate import CalibrationSettings
from edgesdk_export.gguf.file_types import DEFAULT_TYPES, FileType, file_type_named
from edgesdk_export.litert.scheme import (
    TfliteScheme,
    tflite_bits,
    tflite_scheme_names,
)
from edgesdk_export.onnx.scheme import WeightScheme, scheme_name
from edgesdk_export.quality.evaluation_text import EvaluationText
from edgesdk_export.recipes.sections import (
    CalibrationRecipe,
    GgufRecipe,
    LitertRecipe,
    OnnxRecipe,
    RecipeSection,
    StaticRecipe,
)

# By bundle format: how weights can be rounded.
METHODS: dict[BundleFormat, tuple[str, ...]] = {
    "onnx": ("nearest", "weighted", "gptq"),
    "gguf": ("nearest", "weighted"),
    "coreml": ("nearest", "weighted", "gptq"),
    "litert": ("nearest",),
}
# The section of a recipe for each format. A Core ML package gets the codes of an ONNX model.
_SECTION_OF: dict[BundleFormat, str] = {
    "onnx": "onnx",
    "gguf": "gguf",
    "coreml": "onnx",
    "litert": "litert",
}


class Recipe(RecipeSection):
    """A whole recipe.

    Attributes:
        name: what messages call it.
        summary: one line for people.
        onnx, gguf, litert: None = no bundle of that format can be made with it.
        static: for graphs of fixed shapes; None = its defaults.
        calibration: for methods that look at a text; None = its defaults.
    """

    name: str
    summary: str = ""
    onnx: OnnxRecipe | None = None
    gguf: GgufRecipe | None = None
    litert: LitertRecipe | None = None
    static: StaticRecipe | None = None
    calibration: CalibrationRecipe | None = None

    def require(self, fmt: BundleFormat) -> None:
        """Check that bundles of a format can be made with this recipe.

        Raises:
            RequestError: it says nothing of that format, or contradicts itself.
            ExportError: it names a method that there is not.
        """
        section = self._section(fmt)
        if section.method not in METHODS[fmt]:
            raise ExportError(
                f"The recipe {self.name}: the method {section.method!r} is not available for "
                f"{fmt}; available: {', '.join(METHODS[fmt])}."
            )
        if isinstance(section, OnnxRecipe):
            self._require_scales(section)
        if isinstance(section, OnnxRecipe) and section.method == "nearest":
            if section.budget is not None:
                raise RequestError(
                    f"The recipe {self.name}: {section.budget:g} bits mix formats by what they "
                    "lose, which has to be measured with a text.",
                    hint="Choose 4, 8, 16 or 32 bits, or a method that calibrates, as in "
                    "--recipe best.",
                )
            for key in ("awq", "offsets"):
                if getattr(section, key):
                    raise RequestError(
                        f"The recipe {self.name}: {key} needs a method that calibrates.",
                        hint="Choose the method weighted or gptq.",
                    )

    def calibrates(self, fmt: BundleFormat) -> bool:
        """Whether the method looks at what the model computes."""
        return self._section(fmt).method != "nearest"

    def with_weights(self, fmt: BundleFormat, weights: str) -> Recipe:
        """The same with other weights: "fp32", "fp16", "int8", "int4" or a budget such as "4.5" in
        ONNX, a type in GGUF.

        Raises:
            RequestError: there are no such weights, or it says nothing of that format.
        """
        if fmt == "gguf":
            change: dict[str, object] = {"type": file_type_named(weights).name}
        elif fmt == "litert":
            change = {"bits": tflite_bits(weights)}
        elif (budget := _budget(weights)) is not None:
            change = {"bits": budget}
        else:
            change = {"bits": WeightScheme.named(weights).linear.recipe_bits}
        section = self._section(fmt).model_copy(update=change)
        return self.model_copy(update={_SECTION_OF[fmt]: section})

    def with_plain_blocks(self) -> Recipe:
        """The same for a writer whose blocks have scales of their own and zero-points only."""
        if self.onnx is None:
            return self
        plain = self.onnx.model_copy(update={"scales": "float32", "offsets": False})
        return self.model_copy(update={"onnx": plain})

    def onnx_scheme(self, parameters: int) -> WeightScheme:
        """How an ONNX model of so many parameters is stored; see `require`."""
        section = self._section("onnx")
        assert isinstance(section, OnnxRecipe)
        return section.scheme(parameters)

    def for_static(self, parameters: int, *, prefill: int | None, window: int | None) -> Recipe:
        """The recipe of an ONNX model of so many parameters in graphs of fixed shapes.

        Args:
            prefill, window: what the user said instead of the recipe's; None = nothing.

        Raises:
            RequestError: it mixes formats, or says nothing of ONNX.
        """
        section = self._section("onnx")
        assert isinstance(section, OnnxRecipe)
        if section.budget is not None:
            raise RequestError(
                f"The recipe {self.name}: graphs of fixed shapes have weights of one format.",
                hint="Choose --bits 4, 16 or 32.",
            )
        said = {"prefill": prefill, "window": window}
        sizes = (self.static or StaticRecipe()).model_copy(
            update={key: value for key, value in said.items() if value is not None}
        )
        return self.model_copy(update={"onnx": section.for_static(parameters), "static": sizes})

    def gguf_type(self, parameters: int) -> FileType:
        """How a GGUF of so many parameters is stored; see `require`."""
        section = self._section("gguf")
        assert isinstance(section, GgufRecipe)
        return section.file_type(parameters)

    def tflite_scheme(self, parameters: int) -> TfliteScheme:
        """How a `.tflite` of so many parameters is stored; see `require`."""
        section = self._section("litert")
        assert isinstance(section, LitertRecipe)
        return section.scheme(parameters)

    def calibration_for(
        self, fmt: BundleFormat, text: EvaluationText | None, *, needed: bool = False
    ) -> CalibrationSettings | None:
        """The settings of calibration, with a text that the user gave; None = no calibration.

        Args:
            needed: whether a text is needed even where each weight is rounded by itself.
        """
        if not (needed or self.calibrates(fmt)):
            return None
        tokens = (self.calibration or CalibrationRecipe()).tokens
        section = self._section(fmt)
        if not isinstance(section, OnnxRecipe):
            return CalibrationSettings("weighted", text, tokens)
        return CalibrationSettings(
            "gptq" if section.method == "gptq" else "weighted",
            text,
            tokens,
            bits=section.budget,
            awq=section.awq,
            sweeps=section.sweeps,
        )

    def resolved_for(self, fmt: BundleFormat, parameters: int) -> Recipe:
        """The recipe of one bundle of that format, with nothing left to be decided."""
        section = self._section(fmt).resolved(parameters)
        calibration = (self.calibration or CalibrationRecipe()) if self.calibrates(fmt) else None
        return Recipe(
            name=self.name,
            summary=self.summary,
            onnx=section if isinstance(section, OnnxRecipe) else None,
            gguf=section if isinstance(section, GgufRecipe) else None,
            litert=section if isinstance(section, LitertRecipe) else None,
            static=self.static if fmt == "onnx" else None,
            calibration=calibration,
        )

    def to_toml(self) -> str:
        """The recipe as TOML; the same recipe gives the same text."""
        lines = [f"name = {_toml(self.name)}", f"summary = {_toml(self.summary)}"]
        sections = {
            "onnx": self.onnx,
            "gguf": self.gguf,
            "litert": self.litert,
            "static": self.static,
            "calibration": self.calibration,
        }
        for name, section in sections.items():
            if section is not None:
                lines += ["", f"[{name}]"]
                lines += [f"{key} = {_toml(value)}" for key, value in section.model_dump().items()]
        return "\n".join(lines) + "\n"

    def _require_scales(self, section: OnnxRecipe) -> None:
        if section.offsets and (section.scales != "uint8" or section.symmetric):
            raise RequestError(
                f"The recipe {self.name}: blocks with offsets have no zero-point, and scales in "
                "8 bits.",
                hint='Choose scales = "uint8" and symmetric = false, or leave offsets out.',
            )
        if section.scales == "uint8" and (section.symmetric or section.sweeps):
            which = "symmetric" if section.symmetric else "sweeps"
            why = {
                "symmetric": "has negative scales, which are stored as float32",
                "sweeps": "moves scales after they have become uint8",
            }
            raise RequestError(
                f"The recipe {self.name}: {which} {why[which]}.",
                hint=f'Choose scales = "float32", or leave {which} out.',
            )

    def _section(self, fmt: BundleFormat) -> OnnxRecipe | GgufRecipe | LitertRecipe:
        name = _SECTION_OF[fmt]
        section = {"onnx": self.onnx, "gguf": self.gguf, "litert": self.litert}[name]
        if section is None:
            raise RequestError(
                f"The recipe {self.name} has no section [{name}].",
                hint="Add one, or ask for another --format.",
            )
        return section


def _budget(text: str) -> float | None:
    try:
        bits = float(text)
    except ValueError:
        return None
    return bits if 4 < bits < 16 else None


def _toml(value: str | float) -> str:
    """JSON's strings, numbers and booleans are TOML's, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).parent
_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Recipe,
    ("onnx",): OnnxRecipe,
    ("gguf",): GgufRecipe,
    ("litert",): LitertRecipe,
    ("static",): StaticRecipe,
    ("calibration",): CalibrationRecipe,
}


def weights_by_bits(fmt: BundleFormat) -> dict[str, str]:
    """The weights that a number of bits stands for: "4" is "q4_k_m" in GGUF, "int4" elsewhere."""
    if fmt == "gguf":
        return {str(bits): name for bits, name in DEFAULT_TYPES.items()}
    if fmt == "litert":
        return tflite_scheme_names()
    return {str(bits): scheme_name(found) for bits, found in formats_by_bits().items()}


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with edgesdk."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or the one in a file whose name ends in ".toml".

    Raises:
        RequestError: there is none of that name, or the file is no recipe; a wrong key is named,
            and the one that it is near to.
    """
    if name in recipe_names():
        return _read(_FOLDER / f"{name}.toml")
    if name.endswith(".toml"):
        return _read(Path(name))
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    raise RequestError(
        f"There is no recipe {name!r}; there are {', '.join(recipe_names())}, and files whose "
        "names end in .toml.",
        hint=f"Did you mean {near[0]}?" if near else None,
    )


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a recipe's keys and values.

    Raises:
        RequestError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"The recipe {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"The recipe {path} is not TOML: {error}.") from None


def _read(path: Path) -> Recipe:
    values = read_recipe_file(path)
    try:
        return Recipe.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise _refusal(path, error.errors()[0]) from None


def _refusal(path: Path, error: Any) -> RequestError:
    place = tuple(str(part) for part in error["loc"])
    shown = ".".join(place)
    if error["type"] != "extra_forbidden":
        return RequestError(f"The recipe {path}: {shown}: {error['msg']}.")
    fields = list(_SECTIONS[place[:-1]].model_fields)
    near = difflib.get_close_matches(place[-1], fields, n=1)
    return RequestError(
        f"The recipe {path} has the unknown key '{shown}'.",
        hint=f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(fields)}.",
    )
