"""Give each stored matrix of the layers a format: the same for all, or a mix in a budget."""

from __future__ import annotations

from collections.abc import Mapping

from edgesdk_quantize.formats import BlockFormat, CodedScales, FloatFormat
from edgesdk_quantize.formats.registry import mixable_formats
from edgesdk_quantize.methods.format_budget import FormatOption, choose_formats

from edgesdk.bundle.spec import DecoderSpec, canonical_shapes
from edgesdk.errors import RequestError
from edgesdk_export.calibration.sensitivity import MatrixCost
from edgesdk_export.onnx import WeightScheme
from edgesdk_export.onnx.operators import block_size
from edgesdk_export.onnx.stored_weights import matrix_parts


def one_format(spec: DecoderSpec, fmt: BlockFormat) -> dict[str, BlockFormat]:
    """One format for all stored matrices of the layers, of the same bits where it does not fit."""
    shapes, matrix_formats = canonical_shapes(spec), dict[str, BlockFormat]()
    for name, parts in matrix_parts(spec).items():
        if name.startswith("layers."):
            columns = shapes[f"{parts[0]}.weight"][1]
            matrix_formats[name] = fmt.for_columns(columns)
    return matrix_formats


def formats_to_mix(scheme: WeightScheme) -> tuple[BlockFormat, ...]:
    """List the formats that a matrix may have where they are mixed: 4.1 to 9.3 bits a weight."""
    plain = mixable_formats(offsets=False)
    if isinstance(scheme.linear, FloatFormat) or not scheme.linear.has_coded_scales:
        return plain
    offsets = mixable_formats(offsets=True) if scheme.linear.has_offsets else ()
    return (*map(CodedScales, plain), *offsets)


def mixed_formats(
    spec: DecoderSpec, scheme: WeightScheme, costs: Mapping[str, MatrixCost], bits: float
) -> dict[str, BlockFormat]:
    """The format of each stored matrix of the layers, so that the whole model takes `bits` a
    weight at most and loses least; `costs` were measured for `formats_to_mix(scheme)`.

    Raises:
        RequestError: no choice is as small; the message says what is.
    """
    shapes, matrices = canonical_shapes(spec), matrix_parts(spec)
    formats = formats_to_mix(scheme)
    choices: dict[str, list[FormatOption]] = {}
    matrix_formats: dict[str, list[BlockFormat]] = {}
    for name, cost in costs.items():
        parts = [shapes[f"{part}.weight"] for part in matrices[name]]
        rows, columns = sum(shape[0] for shape in parts), parts[0][1]
        usable = [k for k, fmt in enumerate(formats) if _fits(fmt, columns)]
        matrix_formats[name] = [formats[k] for k in usable]
        choices[name] = [
            FormatOption(formats[k].stored_bits(rows, columns), cost.divergence[k]) for k in usable
        ]
    fixed = _fixed_bits(spec, scheme, set(costs))
    try:
        chosen = choose_formats(choices, bits * spec.parameters - fixed)
    except ValueError:
        smallest = fixed + sum(
            min(choice.bits for choice in options) for options in choices.values()
        )
        raise RequestError(
            f"{bits:g} bits a weight cannot be reached; the smallest formats take "
            f"{smallest / spec.parameters:.2f}, of which the embedding and the head take "
            f"{fixed / spec.parameters:.2f}.",
            hint="Ask for more bits.",
        ) from None
    return {name: matrix_formats[name][place] for name, place in chosen.items()}


def _fits(fmt: BlockFormat, columns: int) -> bool:
    """Tell whether a graph can read the block size back from the number of blocks."""
    if fmt.has_offsets and columns % fmt.block:
        return False
    return block_size(columns, -(-columns // fmt.block)) == fmt.block


def _fixed_bits(spec: DecoderSpec, scheme: WeightScheme, mixed: set[str]) -> float:
    """Stored bits of everything but the mixed matrices."""
    shapes, matrices = canonical_shapes(spec), matrix_parts(spec)
    total, within = 0.0, {f"{part}.weight" for name in matrices for part in matrices[name]}
    for name in matrices.keys() - mixed:
        rows, columns = shapes[f"{matrices[name][0]}.weight"]
        fmt = scheme.embedding
        if name == "embed":
            fmt = scheme.embedding_for(spec.tied, columns)
        total += fmt.stored_bits(rows, columns)
    for name, shape in shapes.items():
        if name not in within:
            total += 32 * shape[0]
    return total
