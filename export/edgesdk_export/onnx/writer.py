"""Write a decoder as an ONNX model with streamed external data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from edgesdk_quantize.formats import BlockFormat, FloatFormat, PackedMatrix
from edgesdk_quantize.formats.blocks import ScaleCodes, stack_rows
from edgesdk_quantize.formats.qdq import Qdq, QdqWeights

from edgesdk.bundle import graph_io
from edgesdk.bundle.manifest import SourceBlocks
from edgesdk.bundle.rope import rope_tables
from edgesdk.bundle.spec import DecoderSpec, RopeSpec, canonical_shapes
from edgesdk.errors import ExportError
from edgesdk_export.onnx.decoder_graph import decoder_model
from edgesdk_export.onnx.external_data import ExternalDataWriter
from edgesdk_export.onnx.rope_tables import stored_length
from edgesdk_export.onnx.scheme import LayerQuantizer, OnnxFormat, WeightScheme
from edgesdk_export.onnx.source_blocks import MatrixBlocks, RequantizationLoss
from edgesdk_export.onnx.stored_weights import StoredTensors, matrix_parts, norm_names
from edgesdk_export.resume import SectionJournal
from edgesdk_export.weights import Decoder, LazyTensor, read_whole, require_finite, row_chunks

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"


class LayerProgress(Protocol):
    """Told before the first layer, and after each."""

    def __call__(self, done: int, layers: int) -> None:
        """`done` of `layers` layers have been written, by this process or by an earlier one."""


@dataclass(frozen=True)
class WrittenModel:
    """The result of `write_decoder`.

    Attributes:
        model_file: the graph's file name; its weights lie beside it in one data file.
        bits_per_weight: all stored weight bytes (scales and zero-points too, rope tables not)
            times 8, divided by the number of parameters.
        source_blocks: what became of weights that the checkpoint stores in blocks.
    """

    model_file: str
    bits_per_weight: float
    scheme: WeightScheme
    source_blocks: tuple[SourceBlocks, ...]

    @property
    def method(self) -> str:
        """How the weights were rounded, in words for the manifest."""
        kept = sorted({entry.source for entry in self.source_blocks if not entry.relative_error})
        text = self.scheme.method
        return f"{text}; blocks of {', '.join(kept)} kept" if kept else text


def write_decoder(
    decoder: Decoder,
    folder: Path,
    scheme: WeightScheme,
    progress: LayerProgress | None = None,
    quantizer: LayerQuantizer | None = None,
    journal: SectionJournal | None = None,
) -> WrittenModel:
    """Write `model.onnx` and `model.onnx.data` into `folder`, a few rows of weights at a time.

    The same decoder, scheme and quantizer give the same bytes. `quantizer` decides the codes of
    the linear layers, in formats of its own; None = the scheme's format rounds each row by itself.
    `journal` is of the data file, where an earlier call with the same arguments may have been
    killed: layers that it names are neither read nor asked of the quantizer again.

    Raises:
        ExportError: a weight is NaN or infinite or does not fit the format, or the decoder's
            sizes are such that onnxruntime cannot run it.
    """
    spec = decoder.spec
    check_runnable(spec, scheme)
    with ExternalDataWriter(folder / DATA_FILE, journal) as data:
        store = WeightStore(decoder.weights, canonical_shapes(spec), data)
        _store_all(store, spec, scheme, progress, quantizer)
    ir.save(decoder_model(spec, StoredTensors(store.tensors)), folder / MODEL_FILE)
    weight_bytes = sum(
        tensor.nbytes
        for name, tensor in store.tensors.items()
        if name != "embed.rows" and not name.endswith((".cos", ".sin"))
    )
    bits_per_weight = weight_bytes * 8 / spec.parameters
    return WrittenModel(MODEL_FILE, bits_per_weight, scheme, store.requantization_loss.entries())


def check_runnable(spec: DecoderSpec, scheme: WeightScheme) -> None:
    """Refuse sizes that onnxruntime's operators cannot run.

    Raises:
        ExportError: with the size and what is possible.
    """
    fmt = scheme.embedding_for(spec.tied, spec.hidden_size)
    if isinstance(fmt, BlockFormat) and spec.hidden_size % fmt.block:
        raise ExportError(
            f"An embedding with a hidden size of {spec.hidden_size} cannot be quantized: no block"
            " of 16 or more divides it.",
            hint='Write embedding = "fp16" in the recipe, or choose fp16 weights.',
        )


def _store_all(
    store: WeightStore,
    spec: DecoderSpec,
    scheme: WeightScheme,
    progress: LayerProgress | None,
    quantizer: LayerQuantizer | None,
) -> None:
    store.once("embed", functools.partial(_store_embedding, store, spec, scheme))
    if isinstance(scheme.embedding_for(spec.tied, spec.hidden_size), BlockFormat):
        store.embedding_view()
    sections = [f"layers.{index}" for index in range(spec.layers)]
    if progress is not None:
        progress(sum(store.has(section) for section in sections), spec.layers)
    for index, section in enumerate(sections):
        write = functools.partial(_store_layer, store, spec, scheme, quantizer, index)
        if store.once(section, write) and progress is not None:
            progress(index + 1, spec.layers)
    store.once("rest", functools.partial(_store_rest, store, spec, scheme))


def _store_embedding(store: WeightStore, spec: DecoderSpec, scheme: WeightScheme) -> None:
    fmt = scheme.embedding_for(spec.tied, spec.hidden_size)
    store.matrix("embed", matrix_parts(spec)["embed"], fmt)


def _store_layer(
    store: WeightStore,
    spec: DecoderSpec,
    scheme: WeightScheme,
    quantizer: LayerQuantizer | None,
    index: int,
) -> None:
    at = f"layers.{index}."
    for name in [name for name in norm_names(spec) if name.startswith(at)]:
        store.vector(name, (name,))
    packed = {} if quantizer is None else quantizer.layer(index)
    for matrix, parts in matrix_parts(spec).items():
        if not matrix.startswith(at):
            continue
        if quantizer is None:
            store.matrix(matrix, parts, scheme.linear)
        else:
            store.packed(matrix, parts, packed[matrix])


def _store_rest(store: WeightStore, spec: DecoderSpec, scheme: WeightScheme) -> None:
    store.vector("final_norm.weight", ("final_norm.weight",))
    if not spec.tied:
        store.matrix("head", matrix_parts(spec)["head"], scheme.embedding)
    for name, rope in graph_io.ropes(spec).items():
        store.rope(name, rope, stored_length(spec))


class WeightStore:
    """Writes a model's weights under their stored names, and remembers the headers.

    Args:
        weights, shapes: by canonical name.
        dtype: of vectors and of the scales of blocks.
    """

    def __init__(
        self,
        weights: Mapping[str, LazyTensor],
        shapes: Mapping[str, tuple[int, ...]],
        data: ExternalDataWriter,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> None:
        self._dtype = dtype
        self._weights = weights
        self._shapes = shapes
        self._data = data
        self.tensors: dict[str, ir.ExternalTensor] = {}
        self.requantization_loss = RequantizationLoss()

    def has(self, section: str) -> bool:
        """Whether an earlier process finished a section."""
        return self._data.finished(section) is not None

    def once(self, section: str, write: Callable[[], None]) -> bool:
        """Have `write` store a section, unless it is finished; whether it had to."""
        found = self._data.finished(section)
        if found is None:
            write()
            self._data.finish(section, self.requantization_loss.sums)
            return True
        headers, sums = found
        self.tensors |= headers
        self.requantization_loss.restore(sums)
        return False

    def matrix(self, name: str, parts: tuple[str, ...], fmt: OnnxFormat) -> None:
        """Store the rows of all `parts` as one matrix, and their biases as one vector."""
        shapes = [self._shapes[f"{part}.weight"] for part in parts]
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        weights = tuple(f"{part}.weight" for part in parts)
        if isinstance(fmt, FloatFormat):
            values = _converted(self._checked(weights), fmt)
            dtype = ir.DataType.from_numpy(fmt.dtype)
            self._add(f"{name}.weight", dtype, (rows, columns), values)
        else:
            fmt = fmt.for_columns(columns)
            blocks = MatrixBlocks({weight: self._weights[weight] for weight in weights}, fmt)
            self._blocks(name, rows, columns, blocks, fmt)
        self._biases(name, parts)

    def channels(self, name: str, parts: tuple[str, ...], fmt: Qdq) -> None:
        """Store the rows of all `parts` as one matrix [columns, rows] of integers with a scale for
        each row, and their biases as one vector."""
        weights = tuple(f"{part}.weight" for part in parts)
        found = [fmt.quantize(chunk) for _, chunk in self._checked(weights)]
        turned = np.concatenate([piece.codes for piece in found]).T
        scales = np.concatenate([piece.scales for piece in found])
        dtype = ir.DataType.INT4 if fmt.weight_bits == 4 else ir.DataType.INT8
        codes = fmt.stored(QdqWeights(np.ascontiguousarray(turned), scales))
        if fmt.weight_bits == 8:
            codes = codes.view(np.int8)
        self._add(f"{name}.channels", dtype, turned.shape, [codes])
        self._add(f"{name}.channel_scales", self._dtype, scales.shape, [scales])
        self._biases(name, parts)

    def packed(self, name: str, parts: tuple[str, ...], packed: PackedMatrix) -> None:
        """Store a matrix that is quantized already, and the biases of its `parts`."""
        self._packed(name, packed)
        self._biases(name, parts)

    def _packed(self, name: str, packed: PackedMatrix) -> None:
        self._add(f"{name}.codes", ir.DataType.UINT8, packed.data.shape, [packed.data])
        self._scales(name, [packed.scales], [packed.coded])
        zeros = packed.zero_points
        if zeros is not None:
            self._add(f"{name}.zero_points", ir.DataType.UINT8, zeros.shape, [zeros])
        if packed.offsets is not None:
            self._packed(f"{name}.offsets", packed.offsets)

    def vector(self, name: str, parts: tuple[str, ...]) -> None:
        """Store vectors, one after another, as one vector."""
        size = sum(self._shapes[part][0] for part in parts)
        self._add(name, self._dtype, (size,), _values(self._checked(parts)))

    def embedding_view(self) -> None:
        """The embedding's codes as the gather sees them, without blocks."""
        codes = self.tensors["embed.codes"]
        rows, blocks, size = codes.shape.numpy()
        shape = (rows, blocks * size)
        name = "embed.rows"
        self.tensors[name] = self._data.view(name, codes, ir.DataType.UINT8, shape)

    def rope(self, name: str, rope: RopeSpec, length: int) -> None:
        """Store the tables of a rope for texts of up to `length` tokens."""
        tables = rope_tables(rope, length)
        for part, table in zip(graph_io.rope_names(name), tables, strict=True):
            self._add(part, ir.DataType.FLOAT, table.shape, [table])

    def _biases(self, name: str, parts: tuple[str, ...]) -> None:
        if f"{parts[0]}.bias" in self._weights:
            self.vector(f"{name}.bias", tuple(f"{part}.bias" for part in parts))

    def _blocks(
        self,
        name: str,
        rows: int,
        columns: int,
        blocks: MatrixBlocks,
        fmt: BlockFormat,
    ) -> None:
        count = -(-columns // fmt.block)
        scales: list[npt.NDArray[Any]] = []
        coded: list[ScaleCodes | None] = []
        zeros: list[npt.NDArray[Any]] = []
        offsets: list[PackedMatrix] = []

        def codes() -> Iterator[npt.NDArray[np.uint8]]:
            # Scales and zero-points are an eighth of the codes: small enough to wait in memory.
            for packed in blocks.chunks(self.requantization_loss):
                scales.append(packed.scales)
                coded.append(packed.coded)
                if packed.zero_points is not None:
                    zeros.append(packed.zero_points)
                if packed.offsets is not None:
                    offsets.append(packed.offsets)
                yield packed.data

        blob = fmt.block * fmt.bits // 8
        self._add(f"{name}.codes", ir.DataType.UINT8, (rows, count, blob), codes())
        self._scales(name, scales, coded)
        if zeros:
            shape = (rows, -(-count * fmt.bits // 8))
            self._add(f"{name}.zero_points", ir.DataType.UINT8, shape, zeros)
        if offsets:
            self._packed(f"{name}.offsets", stack_rows(offsets, 8))

    def _scales(
        self, name: str, scales: Sequence[npt.NDArray[Any]], coded: Sequence[ScaleCodes | None]
    ) -> None:
        """Store the scales of a matrix, given some rows after another: in 8 bits where all of its
        rows have them so."""
        rows, blocks = sum(len(part) for part in scales), scales[0].shape[1]
        known = [part for part in coded if part is not None]
        if len(known) < len(coded):
            self._add(f"{name}.scales", self._dtype, (rows, blocks), scales)
            return
        codes, units = [part.codes for part in known], [part.units for part in known]
        self._add(f"{name}.scale_codes", ir.DataType.UINT8, (rows, blocks), codes)
        self._add(f"{name}.scale_units", ir.DataType.FLOAT, (rows, 1), units)

    def _checked(self, names: tuple[str, ...]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        for name in names:
            tensor: LazyTensor = self._weights[name]
            chunks = row_chunks(tensor) if len(tensor.shape) > 1 else iter([read_whole(tensor)])
            start = 0
            for chunk in chunks:
                yield name, require_finite(name, chunk, first_row=start)
                start += len(chunk)

    def _add(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        chunks: Iterable[npt.NDArray[Any]],
    ) -> None:
        self.tensors[name] = self._data.add(name, dtype, shape, chunks)


def _values(
    chunks: Iterable[tuple[str, npt.NDArray[np.float32]]],
) -> Iterator[npt.NDArray[np.float32]]:
    for _, chunk in chunks:
        yield chunk


def _converted(
    chunks: Iterable[tuple[str, npt.NDArray[np.float32]]], fmt: FloatFormat
) -> Iterator[npt.NDArray[Any]]:
    for name, chunk in chunks:
        try:
            yield fmt.quantize(chunk)
        except ValueError as error:
            raise ExportError(
                f"Weight {name} {error}.", hint="Choose fp32 or int8 weights."
            ) from None
