"""Say how the weights of graphs of fixed shapes are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from edgesdk_quantize.formats import FP16, FP32, BlockFormat, FloatFormat, Int4Symmetric
from edgesdk_quantize.formats.qdq import A16W4, A16W8, W4, W8, Qdq

from edgesdk.engines.devices import STATIC_BLOCKS, STATIC_CHANNELS
from edgesdk.errors import RequestError
from edgesdk_export.onnx import WeightScheme

StaticFormat: TypeAlias = BlockFormat | FloatFormat | Qdq

# Qualcomm's compiler keeps blocks of weights; Intel's keeps one scale for each output.
GRAPHS = (STATIC_BLOCKS, STATIC_CHANNELS)


@dataclass(frozen=True)
class StaticScheme:
    """Formats of a decoder's weights.

    Attributes:
        name: "fp32", "fp16", "int8", "int4", "a16w8", "a16w4".
        linear: of the linear layers.
        head: of the head.
        floats: what the graph computes in, and stores its norms, biases and scales in.
        lookup: of the embedding. No NPU gathers from blocks.
    """

    name: str
    linear: StaticFormat
    head: StaticFormat
    floats: FloatFormat
    lookup: FloatFormat

    @property
    def method(self) -> str:
        """How weights are rounded, in words for the manifest."""
        if isinstance(self.linear, FloatFormat):
            return f"stored as {self.linear.name}"
        if isinstance(self.linear, Qdq):
            searched = (
                ", searched for the least squared error" if self.linear.weight_bits == 4 else ""
            )
            return f"DequantizeLinear, one scale for each output{searched}"
        return f"{self.linear.operator}, block {self.linear.block}, {self.linear.rounding}"

    @property
    def blocks(self) -> WeightScheme:
        """The formats that calibration chooses codes of.

        Raises:
            RequestError: there is no choice.
        """
        if isinstance(self.linear, Qdq) or isinstance(self.head, Qdq):
            raise RequestError(
                f"{self.name} weights of a target with an NPU are rounded by themselves.",
                hint="Choose --recipe fast, or a target that takes blocks of weights.",
            )
        return WeightScheme(self.name, self.linear, self.head)

    @property
    def quantizes_activations(self) -> bool:
        """Whether the inputs of matrices are rounded too, to grids that a text gives."""
        return isinstance(self.linear, Qdq) and self.linear.activation_bits > 0


def static_scheme(scheme: WeightScheme, graph: str, *, activations: str) -> StaticScheme:
    """The scheme of the same bits for a variant of graph.

    Args:
        activations: see `edgesdk_export.recipes.sections.StaticRecipe`.

    Raises:
        RequestError: there is none.
    """
    linear, bits = scheme.linear, scheme.linear.recipe_bits
    if isinstance(linear, FloatFormat):
        if activations == "uint16":
            raise _no_scheme(f"Weights of {bits} bits", "--bits 4 or 8")
        return StaticScheme(linear.name, linear, linear, linear, linear)
    if activations == "uint16" or (activations == "auto" and graph == STATIC_BLOCKS and bits == 8):
        # In float32: scales of 16-bit codes would lose their last digits.
        fmt = {4: A16W4, 8: A16W8}[bits]
        return StaticScheme(fmt.name, fmt, A16W8, FP32, FP16)
    if graph == STATIC_CHANNELS:
        return StaticScheme(f"int{bits}", {4: W4, 8: W8}[bits], W8, FP16, FP16)
    if bits == 8:
        raise _no_scheme("Blocks of 8 bits", '--bits 4, or activations = "uint16"')
    return StaticScheme("int4", Int4Symmetric(linear.block), FP16, FP16, FP16)


def _no_scheme(what: str, instead: str) -> RequestError:
    return RequestError(
        f"{what} with such activations cannot be run by that target.", hint=f"Choose {instead}."
    )
