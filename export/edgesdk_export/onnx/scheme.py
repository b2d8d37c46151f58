"""Say which number format each weight of a decoder is stored in, and who finds the codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from edgesdk_quantize.formats import BlockFormat, FloatFormat, Int8Symmetric, PackedMatrix
from edgesdk_quantize.formats.registry import formats_by_bits

from edgesdk.errors import RequestError

OnnxFormat: TypeAlias = BlockFormat | FloatFormat

# Below this many parameters 4 bits cost more quality than they save memory.
_SMALL = 300_000_000


@dataclass(frozen=True)
class WeightScheme:
    """Formats of a decoder's weights; norms, biases and rope tables are float32 in all of them.

    "fp16" halves the file only: onnxruntime turns the weights into float32 when it loads them and
    computes in float32, since its CPU kernels know no float16.

    Attributes:
        name: "fp32", "fp16", "int8", "int4".
        linear: of the linear layers.
        embedding: of the embedding and the head (one tensor where they are tied).
        lookup: of an embedding that is only looked up, because the head is a matrix of its own;
            None = as `embedding`.
    """

    name: str
    linear: OnnxFormat
    embedding: OnnxFormat
    lookup: OnnxFormat | None = None

    def embedding_for(self, tied: bool, columns: int) -> OnnxFormat:
        """The format of the embedding, by whether it is the head too, and by the hidden size.

        Its block is smaller than the scheme's where only that divides the columns.
        """
        fmt = self.embedding if tied or self.lookup is None else self.lookup
        return fmt if isinstance(fmt, FloatFormat) else fmt.dividing(columns) or fmt

    @classmethod
    def named(cls, name: str) -> WeightScheme:
        """The scheme of that name.

        Raises:
            RequestError: there is none.
        """
        known = {scheme_name(fmt): fmt for fmt in reversed(formats_by_bits().values())}
        if name not in known:
            raise RequestError(
                f"There is no weight format {name!r}.", hint=f"Choose one of {', '.join(known)}."
            )
        linear = known[name]
        embedding = linear if isinstance(linear, FloatFormat) else Int8Symmetric()
        return cls(name, linear, embedding)

    @property
    def method(self) -> str:
        """How weights are rounded, in words for the manifest."""
        if isinstance(self.linear, FloatFormat):
            return f"stored as {self.linear.name}"
        coded = ", scales in 8 bits" if self.linear.has_coded_scales else ""
        block = self.linear.block
        return f"{self.linear.operator}, block {block}{coded}, {self.linear.rounding}"


def scheme_name(linear: OnnxFormat) -> str:
    """Name a scheme by the format of its linear layers: "int4", also with offsets."""
    return linear.name if isinstance(linear, FloatFormat) else f"int{linear.recipe_bits}"


def default_bits(parameters: int) -> Literal[4, 8]:
    """8 bits for a model under 300 million parameters, 4 bits above."""
    return 8 if parameters < _SMALL else 4


class LayerQuantizer(Protocol):
    """Quantizes the linear layers of a decoder, one decoder layer after another."""

    @property
    def method(self) -> str:
        """How, in words for the manifest."""

    @property
    def formats(self) -> str:
        """Names of the formats that it uses, joined by "+", for the manifest."""

    def layer(self, index: int) -> Mapping[str, PackedMatrix]:
        """Every stored matrix of layer `index` ("layers.{index}.qkv", ...), packed.

        Each may be in a format of its own. Called once for each layer, in order; not for layers
        that an earlier process finished.

        Raises:
            ExportError: a weight is NaN or infinite.
        """
