"""Write a decoder and its text side as one GGUF file, a few rows in memory at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgesdk_quantize.formats import ggml
from edgesdk_quantize.formats.blocks import UInt8
from edgesdk_quantize.formats.ggml import GgmlFormat
from gguf.constants import GGML_QUANT_VERSION

from edgesdk.errors import ExportError
from edgesdk_export.gguf.container import TensorPlan, Value, write_container
from edgesdk_export.gguf.decoder_metadata import decoder_metadata, rope_tensors
from edgesdk_export.gguf.file_types import FileType, choose_types
from edgesdk_export.gguf.tensors import TargetTensor, target_tensors
from edgesdk_export.resume import SectionJournal
from edgesdk_export.weights import Decoder, Float32, PackedTensor

# By tensor name ("blk.0.attn_q.weight"): how much an error in each column matters, float32 [K].
Importance = Mapping[str, Float32]


@dataclass(frozen=True)
class WrittenGguf:
    """The result of `write_gguf`.

    Attributes:
        types: of every matrix, by tensor name.
        head_type: of the matrix that gives the logits.
        bits_per_weight: of all tensors, norms and rope factors included.
        copied: names of the tensors that were copied as they were.
    """

    types: Mapping[str, GgmlFormat]
    head_type: GgmlFormat
    bits_per_weight: float
    copied: tuple[str, ...]


def write_gguf(
    decoder: Decoder,
    path: Path,
    file_type: FileType,
    *,
    name: str,
    vocabulary: Mapping[str, Value],
    sampling: Mapping[str, float] | None = None,
    licence: str | None = None,
    importance: Importance | None = None,
    types: Mapping[str, GgmlFormat] | None = None,
    journal: SectionJournal | None = None,
    progress: Callable[[int], None] | None = None,
) -> WrittenGguf:
    """Write a GGUF that llama.cpp runs. The same input gives the same bytes; a matrix that has its
    type already is copied.

    Args:
        name: what the model calls itself.
        vocabulary: the `tokenizer.*` metadata.
        sampling: the `general.sampling.*` metadata.
        importance: what quantizers weigh errors with; tensors that it does not name have none.
        types: of matrices that depart from the mixture, by tensor name.
        journal: of the file, where an earlier call may have been killed; see `write_container`.
        progress: called with the number of layers that are over.

    Raises:
        ExportError: llama.cpp cannot compute this decoder, or a weight cannot be stored.
        MissingExtra: llama-cpp-python, which has ggml's quantizers, is not installed.
    """
    spec = decoder.spec
    stored = target_tensors(spec)
    places = [tensor.place for tensor in stored if len(tensor.shape) > 1]
    chosen = choose_types(file_type, spec, places, weighted=importance is not None)
    chosen |= types or {}
    copied = [tensor.name for tensor in stored if _has_type(decoder, tensor, chosen)]
    plans = []
    for tensor in stored:
        fmt = chosen.get(tensor.name, ggml.F32)
        chunks: Callable[[], Iterable[Float32 | UInt8]]
        if tensor.name in copied:
            chunks = functools.partial(tensor.packed_chunks, decoder)
        else:
            chunks = functools.partial(_rounded, decoder, tensor, fmt, importance or {})
        plans.append(TensorPlan(tensor.name, tensor.shape, fmt, chunks))
    plans += [
        TensorPlan(factors, values.shape, ggml.F32, functools.partial(tuple, (values,)))
        for factors, values in rope_tensors(spec).items()
    ]
    metadata: dict[str, Value] = {
        **decoder_metadata(spec),
        "general.type": "model",
        "general.name": name,
        **({} if licence is None else {"general.license": licence}),
        "general.file_type": int(file_type.number),
        "general.quantization_version": GGML_QUANT_VERSION,
        **(sampling or {}),
        **vocabulary,
    }
    last_of_layer = {tensor.name: tensor.layer for tensor in stored if tensor.layer is not None}

    def written(tensor: str) -> None:
        layer = last_of_layer.get(tensor)
        if progress is not None and layer is not None:
            progress(layer)

    write_container(path, metadata, plans, written=written, journal=journal)
    if progress is not None:
        progress(spec.layers)
    head = chosen.get("output.weight", chosen["token_embd.weight"])
    bits = 8 * sum(plan.size for plan in plans)
    weights = sum(math.prod(plan.shape) for plan in plans)
    return WrittenGguf(chosen, head, bits / weights, tuple(copied))


def _has_type(decoder: Decoder, tensor: TargetTensor, chosen: Mapping[str, GgmlFormat]) -> bool:
    """Whether all parts of a tensor are stored in the type that it is to get."""
    fmt = chosen.get(tensor.name)
    weights = [decoder.weights[part] for part in tensor.parts]
    return fmt is not None and all(
        isinstance(weight, PackedTensor) and weight.dtype == fmt.name for weight in weights
    )


def _rounded(
    decoder: Decoder, tensor: TargetTensor, fmt: GgmlFormat, importance: Importance
) -> Iterator[Float32 | UInt8]:
    weights = importance.get(tensor.name)
    for chunk in tensor.chunks(decoder):
        if fmt == ggml.F32:
            yield chunk
            continue
        try:
            yield fmt.quantize(chunk, weights)
        except ValueError as error:
            raise ExportError(
                f"Tensor {tensor.name} ({', '.join(tensor.parts)}): {error}.",
                hint="Choose another type, such as f32.",
            ) from None
