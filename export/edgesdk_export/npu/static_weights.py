"""Store a decoder's weights for graphs of fixed shapes.

The names are those of `edgesdk_export.onnx.stored_weights`, and beside them a matrix M may be

    M.channels               int8 or int4 [columns, rows]
    M.channel_scales         F [rows]

Vectors and scales have the graph's own float type F, as NPUs convert nothing. Where the head is in
another format than the embedding, it is stored beside it, also where they are tied. Both graphs use
one data file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from edgesdk_quantize.formats.qdq import Qdq

from edgesdk.bundle.manifest import SourceBlocks
from edgesdk.bundle.spec import canonical_shapes
from edgesdk_export.npu.static_scheme import StaticFormat, StaticScheme
from edgesdk_export.onnx.external_data import ExternalDataWriter
from edgesdk_export.onnx.scheme import LayerQuantizer
from edgesdk_export.onnx.stored_weights import StoredTensors, matrix_parts, norm_names
from edgesdk_export.onnx.writer import WeightStore
from edgesdk_export.resume import SectionJournal
from edgesdk_export.weights import Decoder


def store_static(
    decoder: Decoder,
    path: Path,
    scheme: StaticScheme,
    progress: Callable[[int], None],
    quantizer: LayerQuantizer | None = None,
    journal: SectionJournal | None = None,
) -> tuple[StoredTensors, float, tuple[SourceBlocks, ...]]:
    """Write the data file `path`, a few rows of weights at a time.

    Args:
        progress: called with the number of layers that are written, by this process or by an
            earlier one: before the first, and after each.
        quantizer, journal: see `edgesdk_export.onnx.writer.write_decoder`.

    Returns:
        The stored weights, their bits per weight, and what became of blocks of the checkpoint.

    Raises:
        ExportError: a weight is NaN or infinite, or beyond the range of its type.
    """
    spec = decoder.spec
    with ExternalDataWriter(path, journal) as data:
        dtype = ir.DataType.from_numpy(scheme.floats.dtype)
        store = WeightStore(decoder.weights, canonical_shapes(spec), data, dtype)
        embed = functools.partial(store.matrix, "embed", ("embed",), scheme.lookup)
        store.once("embed", embed)
        sections = [f"layers.{index}" for index in range(spec.layers)]
        progress(sum(store.has(section) for section in sections))
        for index, section in enumerate(sections):
            write = functools.partial(_store_layer, store, decoder, scheme, quantizer, index)
            if store.once(section, write):
                progress(index + 1)
        store.once("rest", functools.partial(_store_rest, store, decoder, scheme))
    weight_bytes = sum(tensor.nbytes for tensor in store.tensors.values())
    bits = weight_bytes * 8 / spec.parameters
    return StoredTensors(store.tensors), bits, store.requantization_loss.entries()


def _store_layer(
    store: WeightStore,
    decoder: Decoder,
    scheme: StaticScheme,
    quantizer: LayerQuantizer | None,
    index: int,
) -> None:
    at = f"layers.{index}."
    for name in norm_names(decoder.spec):
        if name.startswith(at):
            store.vector(name, (name,))
    packed = {} if quantizer is None else quantizer.layer(index)
    for matrix, parts in matrix_parts(decoder.spec).items():
        if matrix in packed:
            store.packed(matrix, parts, packed[matrix])
        elif matrix.startswith(at):
            _store_matrix(store, matrix, parts, scheme.linear)


def _store_rest(store: WeightStore, decoder: Decoder, scheme: StaticScheme) -> None:
    store.vector("final_norm.weight", ("final_norm.weight",))
    if not decoder.spec.tied:
        _store_matrix(store, "head", ("head",), scheme.head)
    elif scheme.head != scheme.lookup:
        _store_matrix(store, "head", ("embed",), scheme.head)


def _store_matrix(store: WeightStore, name: str, parts: tuple[str, ...], fmt: StaticFormat) -> None:
    if isinstance(fmt, Qdq):
        store.channels(name, parts, fmt)
    else:
        store.matrix(name, parts, fmt)
