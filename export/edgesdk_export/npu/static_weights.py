"""Store a decoder's weights for graphs of fixed shapes.

The names are those of `edgesdk_export.onnx.stored_weights`. Vectors and scales are in the graph's
own float type, as NPUs convert nothing. The embedding is looked up as floats: no NPU gathers from
blocks. Where the head is in another format than that, it is stored beside it, also where they are
tied. Both graphs use one data file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from edgesdk_quantize.formats.floats import FP16, FP32

from edgesdk.bundle.manifest import SourceBlocks
from edgesdk_export.onnx.external_data import ExternalDataWriter
from edgesdk_export.onnx.scheme import LayerQuantizer, WeightScheme
from edgesdk_export.onnx.stored_weights import StoredTensors, matrix_parts
from edgesdk_export.onnx.writer import WeightStore, store_layer
from edgesdk_export.resume import SectionJournal
from edgesdk_export.weights import Decoder

FLOATS = {"float16": FP16, "float32": FP32}


def store_static(
    decoder: Decoder,
    path: Path,
    scheme: WeightScheme,
    dtype: str,
    progress: Callable[[int], None],
    quantizer: LayerQuantizer | None = None,
    journal: SectionJournal | None = None,
) -> tuple[StoredTensors, float, tuple[SourceBlocks, ...]]:
    """Write the data file `path`, a few rows of weights at a time.

    Args:
        scheme: of the layers, and of the head as its `embedding`.
        dtype: of the graph: "float16" or "float32".
        progress: called with the number of layers that are written.
        quantizer, journal: see `edgesdk_export.onnx.writer.write_decoder`.

    Returns:
        The stored weights, their bits per weight, and what became of blocks of the checkpoint.

    Raises:
        ExportError: a weight is NaN or infinite, or beyond the range of its type.
    """
    spec, floats = decoder.spec, FLOATS[dtype]
    with ExternalDataWriter(path, journal) as data:
        store = WeightStore(decoder, data, ir.DataType.from_numpy(floats.dtype))
        parts = matrix_parts(spec)
        store.once("embed", functools.partial(store.matrix, "embed", parts["embed"], floats))
        for index in range(spec.layers):
            write = functools.partial(store_layer, store, spec, scheme, quantizer, index)
            store.once(f"layers.{index}", write)
            progress(index + 1)
        store.once("rest", functools.partial(_store_rest, store, decoder, scheme))
    weight_bytes = sum(tensor.nbytes for tensor in store.tensors.values())
    bits = weight_bytes * 8 / spec.parameters
    return StoredTensors(store.tensors), bits, store.requantization_loss.entries()


def _store_rest(store: WeightStore, decoder: Decoder, scheme: WeightScheme) -> None:
    store.vector("final_norm.weight", ("final_norm.weight",))
    spec, parts = decoder.spec, matrix_parts(decoder.spec)
    if not spec.tied:
        store.matrix("head", parts["head"], scheme.embedding)
    elif scheme.embedding not in FLOATS.values():
        store.matrix("head", parts["embed"], scheme.embedding)
