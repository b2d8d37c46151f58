"""Write a decoder as a `.tflite`, a few rows of weights at a time.

The flatbuffer comes first in the file, the weights lie behind it, each at a multiple of 64 bytes.
Where they lie follows from shapes and formats alone, and the length of the flatbuffer does not
depend on the scales in it. So the weights are written first, and the flatbuffer, which has the
scales of rows, last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from edgesdk_quantize.formats import FloatFormat
from edgesdk_quantize.formats.litert import LitertFormat

from edgesdk.bundle.graph_io import rope_names, ropes
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.rope import rope_tables
from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk_export.litert.decoder_graph import draw_decoder
from edgesdk_export.litert.flatbuffer import ModelBuilder, WeightPlace
from edgesdk_export.litert.scheme import TfliteFormat, TfliteScheme
from edgesdk_export.weights import Decoder, Float32, read_whole, require_finite, row_chunks

# Wide enough for any vector instruction.
_ALIGNMENT = 64
_DESCRIPTION = "edgesdk"


def scales_name(weight: str) -> str:
    """The name of the tensor with the scales of a weight's blocks."""
    return f"{weight}.scales"


def write_tflite(
    decoder: Decoder,
    path: Path,
    scheme: TfliteScheme,
    static: StaticShape,
    progress: Callable[[int], None],
) -> float:
    """Write the `.tflite`. The same arguments give the same bytes.

    Args:
        progress: told how many layers have been written.

    Returns:
        Stored bits per weight, with scales, without rope tables.

    Raises:
        ExportError: a weight is NaN or infinite.
    """
    spec = decoder.spec
    planned = _planned(spec, scheme, static)
    start = _aligned(len(_flatbuffer(planned, spec, static)))
    places = {
        name: dataclasses.replace(place, offset=place.offset + start)
        for name, place in planned.items()
    }
    with path.open("wb") as stream:
        for name in canonical_shapes(spec):
            if (scales := _write_weight(stream, decoder, name, scheme, places)) is not None:
                places[name] = dataclasses.replace(places[name], scales=scales)
            if name.endswith(".down.weight"):
                progress(int(name.split(".")[1]) + 1)
        for name, rope in ropes(spec).items():
            tables = rope_tables(rope, spec.context_length)
            for part, table in zip(rope_names(name), tables, strict=True):
                stream.seek(places[part].offset)
                # The places behind the context are those of padding.
                rows = np.pad(table, ((0, static.window - len(table)), (0, 0)), mode="edge")
                stream.write(rows.data)
        stream.truncate(max(place.offset + place.size for place in places.values()))
        stream.seek(0)
        stream.write(_flatbuffer(places, spec, static))
    row_scales = sum(len(place.scales) for place in places.values() if place.scales is not None)
    stored = sum(
        place.size for name, place in places.items() if not name.endswith((".cos", ".sin"))
    )
    return (stored + 4 * row_scales) * 8 / spec.parameters


def _flatbuffer(places: dict[str, WeightPlace], spec: DecoderSpec, static: StaticShape) -> bytes:
    model = ModelBuilder(places, _DESCRIPTION)
    draw_decoder(model, spec, static)
    return model.to_bytes()


def _planned(
    spec: DecoderSpec, scheme: TfliteScheme, static: StaticShape
) -> dict[str, WeightPlace]:
    """Where each weight lies behind the start of the weights; scales are zeros."""
    places: dict[str, WeightPlace] = {}
    end = _ALIGNMENT

    def add(name: str, place: WeightPlace) -> None:
        nonlocal end
        places[name] = dataclasses.replace(place, offset=end)
        end = _aligned(end + place.size)

    for name, shape in canonical_shapes(spec).items():
        for entry, place in _layout(name, shape, scheme).items():
            add(entry, place)
    for name, rope in ropes(spec).items():
        table = (static.window, rope.rotary_size // 2)
        for part in rope_names(name):
            add(part, WeightPlace(table, "float32", 0, 4 * table[0] * table[1]))
    return places


def _layout(name: str, shape: tuple[int, ...], scheme: TfliteScheme) -> dict[str, WeightPlace]:
    """A weight, and the tensor of its scales where they are of blocks."""
    count = int(np.prod(shape))
    fmt = _format_of(name, shape, scheme)
    if fmt is None or isinstance(fmt, FloatFormat):
        return {name: WeightPlace(shape, "float32", 0, 4 * count)}
    rows, columns = shape
    if fmt.block is None:
        scales = np.zeros(rows, np.float32)
        return {name: WeightPlace(shape, "int8", 0, count, scales)}
    blocks = (rows, columns // fmt.block)
    place = WeightPlace(
        shape, "int4", 0, count // 2, block_scales=scales_name(name), block=fmt.block
    )
    return {
        name: place,
        scales_name(name): WeightPlace(blocks, "float16", 0, 2 * blocks[0] * blocks[1]),
    }


def _format_of(name: str, shape: tuple[int, ...], scheme: TfliteScheme) -> TfliteFormat | None:
    """The format of a matrix; None for vectors."""
    return scheme.format_of(name, shape[1]) if len(shape) == 2 else None


def _write_weight(
    stream: BinaryIO,
    decoder: Decoder,
    name: str,
    scheme: TfliteScheme,
    places: dict[str, WeightPlace],
) -> Float32 | None:
    """Write a weight at its place; the scales of its rows, where it has them."""
    tensor = decoder.weights[name]
    fmt = _format_of(name, tensor.shape, scheme)
    stream.seek(places[name].offset)
    if not isinstance(fmt, LitertFormat):
        for rows in _checked_rows(decoder, name):
            stream.write(np.ascontiguousarray(rows).data)
        return None
    scales: list[npt.NDArray[np.float32]] = []
    for rows in _checked_rows(decoder, name):
        packed = fmt.quantize(rows)
        scales.append(packed.scales)
        stream.write(fmt.stored(packed).data)
    found = np.concatenate(scales)
    if fmt.block is None:
        return found
    stream.seek(places[scales_name(name)].offset)
    stream.write(found.astype(np.float16).data)
    return None


def _checked_rows(decoder: Decoder, name: str) -> Iterator[Float32]:
    tensor = decoder.weights[name]
    start = 0
    for rows in row_chunks(tensor) if len(tensor.shape) > 1 else iter([read_whole(tensor)]):
        yield require_finite(name, rows, first_row=start)
        start += len(rows)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
