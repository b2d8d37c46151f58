"""Choose the ggml type of each tensor by llama-quantize's own rules.

A file type such as Q4_K_M is a mixture. The rules are those of `llama_tensor_get_type` in
llama.cpp's src/llama-quant.cpp, for decoders without experts, so that a file has tensor for tensor
the types that llama-quantize gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgesdk_quantize.formats import ggml
from edgesdk_quantize.formats.ggml import GgmlFormat
from gguf.constants import LlamaFileType

from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import RequestError
from edgesdk_export.families.registry import require_gguf_family

# What a tensor is to the rules; "other" gets the base type.
Role = Literal["embedding", "head", "v", "qkv", "o", "down", "other"]


@dataclass(frozen=True)
class FileType:
    """A mixture by its name.

    Attributes:
        name: as llama-quantize spells it, in lower case: "q4_k_m".
        number: what the file's `general.file_type` says.
        base: the type of most tensors.
    """

    name: str
    number: LlamaFileType
    base: GgmlFormat

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized: F32, F16, BF16."""
        return self.base.is_float


_L = LlamaFileType
_FILE_TYPES = (
    FileType("f32", _L.ALL_F32, ggml.F32),
    FileType("f16", _L.MOSTLY_F16, ggml.F16),
    FileType("bf16", _L.MOSTLY_BF16, ggml.BF16),
    FileType("q8_0", _L.MOSTLY_Q8_0, ggml.Q8_0),
    FileType("q6_k", _L.MOSTLY_Q6_K, ggml.Q6_K),
    FileType("q5_k_m", _L.MOSTLY_Q5_K_M, ggml.Q5_K),
    FileType("q5_1", _L.MOSTLY_Q5_1, ggml.Q5_1),
    FileType("q5_0", _L.MOSTLY_Q5_0, ggml.Q5_0),
    FileType("q4_k_m", _L.MOSTLY_Q4_K_M, ggml.Q4_K),
    FileType("q4_k_s", _L.MOSTLY_Q4_K_S, ggml.Q4_K),
    FileType("q4_1", _L.MOSTLY_Q4_1, ggml.Q4_1),
    FileType("q4_0", _L.MOSTLY_Q4_0, ggml.Q4_0),
    FileType("iq4_nl", _L.MOSTLY_IQ4_NL, ggml.IQ4_NL),
    FileType("iq4_xs", _L.MOSTLY_IQ4_XS, ggml.IQ4_XS),
    FileType("q3_k_m", _L.MOSTLY_Q3_K_M, ggml.Q3_K),
    FileType("q2_k", _L.MOSTLY_Q2_K, ggml.Q2_K),
)

# By a recipe's or the command line's number of bits.
DEFAULT_TYPES = {4: "q4_k_m", 8: "q8_0", 16: "f16", 32: "f32"}

_IQ4 = ("iq4_nl", "iq4_xs")


def file_type_names() -> tuple[str, ...]:
    """The mixtures that can be written, largest first."""
    return tuple(file_type.name for file_type in _FILE_TYPES)


def file_type_named(name: str) -> FileType:
    """The mixture of that name, in any case.

    Raises:
        RequestError: there is none.
    """
    for file_type in _FILE_TYPES:
        if file_type.name == name.lower():
            return file_type
    raise RequestError(
        f"There is no GGUF type {name!r}.", hint=f"Choose one of {', '.join(file_type_names())}."
    )


@dataclass(frozen=True)
class MatrixPlace:
    """A matrix, as the rules see it.

    Attributes:
        layer: its layer; 0 for embedding and head.
        columns: values of a row.
    """

    name: str
    role: Role
    layer: int
    columns: int


def choose_types(
    file_type: FileType, spec: DecoderSpec, places: Sequence[MatrixPlace], *, weighted: bool
) -> dict[str, GgmlFormat]:
    """The type of each matrix, by tensor name. `weighted`: importance weights will be given, to
    which some mixtures adapt.
    """
    if file_type.is_float:
        return {place.name: file_type.base for place in places}
    return {
        place.name: ggml.fallback(_wanted(file_type, spec, place, weighted=weighted), place.columns)
        for place in places
    }


def _wanted(
    file_type: FileType, spec: DecoderSpec, place: MatrixPlace, *, weighted: bool
) -> GgmlFormat:
    name, base = file_type.name, file_type.base
    layer, layers = place.layer, spec.layers
    # A tied embedding is the head, too.
    if place.role == "head" or (place.role == "embedding" and spec.tied):
        return ggml.Q8_0 if place.columns % base.block or base == ggml.Q8_0 else ggml.Q6_K
    if place.role in ("v", "qkv"):
        return _value_type(file_type, spec, place)
    if place.role == "down":
        if name == "q2_k":
            return ggml.Q3_K
        if name == "q3_k_m":
            return ggml.Q5_K if layer < layers // 16 else ggml.Q4_K
        if name in ("q4_k_m", "q5_k_m") and _uses_more_bits(layer, layers):
            return ggml.Q6_K
        if layer < layers // 8:
            if name == "q4_k_s" or (name in _IQ4 and not weighted):
                return ggml.Q5_K
            if name in ("q4_0", "q5_0") and weighted:
                return ggml.Q4_1 if name == "q4_0" else ggml.Q5_1
    if place.role == "o":
        return {"q2_k": ggml.Q3_K, "q3_k_m": ggml.Q4_K}.get(name, base)
    return base


def _value_type(file_type: FileType, spec: DecoderSpec, place: MatrixPlace) -> GgmlFormat:
    """Choose the type of a value matrix: values lose most by rounding, and are small where several
    heads share one."""
    name, chosen = file_type.name, file_type.base
    grouped = spec.heads // spec.kv_heads >= 4
    if name == "q2_k":
        chosen = ggml.Q4_K if grouped else ggml.Q3_K
    elif name == "q3_k_m":
        chosen = ggml.Q5_K if place.layer < 2 else ggml.Q4_K
    elif name in _IQ4 and grouped:
        chosen = ggml.Q5_K
    elif name in ("q4_k_m", "q5_k_m") and _uses_more_bits(place.layer, spec.layers):
        chosen = ggml.Q6_K
    elif name == "q4_k_s" and place.layer < 4:
        chosen = ggml.Q5_K
    if _is_70b(spec) and chosen in (ggml.Q3_K, ggml.Q4_K):
        return ggml.Q5_K
    return chosen


def _is_70b(spec: DecoderSpec) -> bool:
    """Tell whether llama.cpp takes a decoder for a model of 70 billion parameters."""
    return spec.layers == 80 and require_gguf_family(spec).is_70b(spec)


def _uses_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and the last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
