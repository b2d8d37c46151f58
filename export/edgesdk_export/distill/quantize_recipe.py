"""Read what a student's weights are to be stored in: the section [quantize] of its recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from edgesdk_quantize.formats import BlockFormat
from edgesdk_quantize.formats.registry import FORMATS
from pydantic import AfterValidator, model_validator

from edgesdk_export.gguf.file_types import file_type_names
from edgesdk_export.recipes.recipe import Recipe
from edgesdk_export.recipes.sections import GgufRecipe, OnnxRecipe, RecipeSection


def _known_weights(name: str) -> str:
    blocks = [known for known, fmt in FORMATS.items() if isinstance(fmt, BlockFormat)]
    known = [*blocks, *(kind for kind in file_type_names() if kind.startswith("q"))]
    if name not in known:
        raise ValueError(f"{name!r} is none of {', '.join(known)}")
    return name


class QuantizeRecipe(RecipeSection):
    """The number format that a student trains through, and ships in.

    Attributes:
        weights: of the linear layers: a block format of ONNX bundles ("int4-128", "int4-symmetric",
            "int4-offset-32") or a GGUF's type ("q4_0", "q4_k_m").
        scales: of an ONNX bundle's blocks: "float32", or "uint8"; see `OnnxRecipe`.
        embedding: of an ONNX bundle's embedding and head; see `OnnxRecipe`.
        train: "weights", and scales with them; or "scales" (and offsets) alone, with the codes that
            training begins with.
        start: of an ONNX bundle's codes: "nearest", each block by itself; or "calibrated" on the
            data, as recipe "best" does (AWQ, GPTQ): takes minutes, and begins where that ends.
    """

    weights: Annotated[str, AfterValidator(_known_weights)]
    scales: Literal["float32", "uint8"] = "float32"
    embedding: str = "auto"
    train: Literal["weights", "scales"] = "weights"
    start: Literal["nearest", "calibrated"] = "nearest"

    @model_validator(mode="after")
    def _consistent(self) -> QuantizeRecipe:
        if self.scales == "uint8" and "symmetric" in self.weights:
            raise ValueError("symmetric blocks have negative scales, which are stored as float32")
        if self.export_recipe().onnx is None and self.start == "calibrated":
            raise ValueError("a GGUF's training begins with ggml's own codes: start = nearest")
        return self

    def export_recipe(self) -> Recipe:
        """The recipe with which `edgesdk export` stores what was trained."""
        fmt = FORMATS.get(self.weights)
        if not isinstance(fmt, BlockFormat):
            return Recipe(name="trained", gguf=GgufRecipe(type=self.weights))
        section = {
            "bits": fmt.recipe_bits,
            "block": fmt.block,
            "symmetric": not (fmt.has_zero_points or fmt.has_offsets),
            "scales": "uint8" if fmt.has_offsets else self.scales,
            "offsets": fmt.has_offsets,
            "embedding": self.embedding,
            # Blocks that were trained are kept; a recipe with offsets has to name a method.
            "method": "weighted" if fmt.has_offsets else "nearest",
        }
        return Recipe(name="trained", onnx=OnnxRecipe.model_validate(section))
