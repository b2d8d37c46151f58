"""What a user asks of calibration, and the quantizer that does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgesdk_quantize.formats import BlockFormat, CodedScales, FloatFormat
from edgesdk_quantize.formats.registry import mixable_formats
from edgesdk_quantize.methods.format_budget import FormatOption, choose_formats
from edgesdk_quantize.methods.gptq import RoundingOptions

from edgesdk.errors import RequestError
from edgesdk_export.calibration.calibration_text import (
    DEFAULT_CALIBRATION_TOKENS,
    GENERATED_NAME,
    builtin_calibration_text,
    calibration_windows,
    generate_calibration_text,
)
from edgesdk_export.calibration.channel_scales import activation_aware
from edgesdk_export.calibration.importance import ImportanceMatrix, collect_importance
from edgesdk_export.calibration.quantizers import SequentialQuantizer, WeightedQuantizer
from edgesdk_export.calibration.sensitivity import MatrixCost, measure_costs
from edgesdk_export.onnx import LayerQuantizer, WeightScheme
from edgesdk_export.onnx.operators import block_size
from edgesdk_export.onnx.stored_weights import matrix_parts
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import EvaluationText, Windows
from edgesdk_export.resume import Arrays, ResumeState, compute_once
from edgesdk_export.spec import DecoderSpec, canonical_shapes
from edgesdk_export.weights import Decoder

# Sensitivities are of the first windows only: each layer's stream runs through all layers behind.
_SENSITIVITY_TOKENS = 1_024
_SENSITIVITY_WINDOW = 256
_MAX_GENERATING_PARAMETERS = 2_000_000_000


@dataclass(frozen=True)
class CalibrationSettings:
    """How the codes of a decoder's linear layers are found with the help of a text.

    Attributes:
        method: "weighted" = scales searched under importance weights; "gptq" = the same, then
            GPTQ on what the quantized layers before give.
        text: what to run; None = what the model itself writes, or above two billion parameters
            the built-in text: writing takes the whole model in memory.
        tokens: how much of it.
        bits: stored bits a weight over the whole model; the format of every matrix is then chosen
            by measured sensitivity. None = the scheme's format for all.
        awq: whether channels with large inputs are scaled up before they are rounded.
        sweeps: of coordinate descent over scales and codes after GPTQ.
    """

    method: Literal["weighted", "gptq"] = "gptq"
    text: EvaluationText | None = None
    tokens: int = DEFAULT_CALIBRATION_TOKENS
    bits: float | None = None
    awq: bool = False
    sweeps: int = 0


@dataclass(frozen=True)
class CalibrationResult:
    """What is written, and how.

    Attributes:
        decoder: computes what the checkpoint does, its channels perhaps rescaled.
        method: in words for the manifest, the text among them.
    """

    decoder: Decoder
    quantizer: LayerQuantizer
    method: str


def calibrate_decoder(
    decoder: Decoder,
    scheme: WeightScheme,
    calibration: CalibrationSettings,
    *,
    tokenizer_json: bytes,
    bos: int | None,
    work: Path,
    progress: ExportProgress,
    kept: ResumeState | None = None,
) -> CalibrationResult:
    """Run what has to run before the first layer is written.

    Args:
        bos: what every text begins with; None = nothing.
        work: a folder for files that are needed meanwhile.
        kept: what a killed process with the same arguments had finished; None = nothing.

    Raises:
        ExportError: the text is too short.
        RequestError: the scheme has no blocks, or no choice of formats is as small as asked for.
    """
    if isinstance(scheme.linear, FloatFormat):
        raise RequestError(
            f"{scheme.name} weights are stored as they are and need no calibration.",
            hint="Choose int4 or int8, or leave calibration out.",
        )
    text_name, windows = _text(decoder, calibration, tokenizer_json, bos, work, kept, progress)
    matrix_formats = _same_format(decoder.spec, scheme.linear)
    if calibration.awq:
        progress.stage("Searching channel scales", decoder.spec.layers)
        decoder = activation_aware(
            decoder, windows, matrix_formats, kept=kept, progress=progress.advance
        )
    if calibration.bits is not None:
        # After the scales: they even out what matrices cost.
        progress.stage("Measuring sensitivity", decoder.spec.layers)
        mixed = formats_to_mix(scheme)
        costs = measure_costs(
            decoder, _sensitivity_windows(windows), mixed, kept=kept, progress=progress.advance
        )
        matrix_formats = mixed_formats(decoder.spec, scheme, costs, calibration.bits)
    quantizer: LayerQuantizer
    if calibration.method == "gptq":
        rounding = RoundingOptions(sweeps=calibration.sweeps)
        quantizer = SequentialQuantizer(decoder, windows, matrix_formats, rounding, kept)
    else:
        progress.stage("Measuring importance", decoder.spec.layers)
        importance = collect_importance(
            decoder, windows, text_name=text_name, kept=kept, progress=progress.advance
        )
        quantizer = WeightedQuantizer(decoder, importance, matrix_formats)
    scaled = "activation-aware channel scales, " if calibration.awq else ""
    coded = "scales in 8 bits, " if scheme.linear.has_coded_scales else ""
    method = f"{scaled}{quantizer.method}, {coded}calibrated on {text_name}"
    return CalibrationResult(decoder, quantizer, method)


def measured_importance(
    decoder: Decoder,
    calibration: CalibrationSettings,
    *,
    tokenizer_json: bytes,
    bos: int | None,
    work: Path,
    progress: ExportProgress,
    kept: ResumeState | None = None,
) -> ImportanceMatrix:
    """The importance of every matrix's inputs, for ggml's quantizers; of `calibration` only the
    text and its tokens count. See `calibrate_decoder`.

    Raises:
        ExportError: the text is too short.
    """
    text_name, windows = _text(decoder, calibration, tokenizer_json, bos, work, kept, progress)
    progress.stage("Measuring importance", decoder.spec.layers)
    return collect_importance(
        decoder, windows, text_name=text_name, kept=kept, progress=progress.advance
    )


def formats_to_mix(scheme: WeightScheme) -> tuple[BlockFormat, ...]:
    """What a matrix may be stored in where formats are mixed: 4.1 to 9.3 bits a weight."""
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
        least = fixed + sum(min(choice.bits for choice in options) for options in choices.values())
        raise RequestError(
            f"{bits:g} bits a weight cannot be reached; the smallest formats take "
            f"{least / spec.parameters:.2f}, of which the embedding and the head take "
            f"{fixed / spec.parameters:.2f}.",
            hint="Ask for more bits.",
        ) from None
    return {name: matrix_formats[name][place] for name, place in chosen.items()}


def _text(
    decoder: Decoder,
    calibration: CalibrationSettings,
    tokenizer_json: bytes,
    bos: int | None,
    work: Path,
    kept: ResumeState | None,
    progress: ExportProgress,
) -> tuple[str, Windows]:
    """The calibration text's name and windows."""
    if calibration.text is None and decoder.spec.parameters <= _MAX_GENERATING_PARAMETERS:
        progress.stage("Writing calibration text", 1)

        def write() -> Arrays:
            return {
                "ids": generate_calibration_text(
                    decoder, work, bos=bos, tokens=calibration.tokens
                ).ids
            }

        windows = Windows(compute_once(kept, "own-writing", write)["ids"])
        progress.advance(1)
        return GENERATED_NAME, windows
    text = calibration.text or builtin_calibration_text()
    context = decoder.spec.context_length
    return text.name, calibration_windows(
        text, tokenizer_json, bos=bos, context=context, tokens=calibration.tokens
    )


def _same_format(spec: DecoderSpec, fmt: BlockFormat) -> dict[str, BlockFormat]:
    """One format for all stored matrices of the layers, of the same bits where it does not fit."""
    shapes, matrix_formats = canonical_shapes(spec), dict[str, BlockFormat]()
    for name, parts in matrix_parts(spec).items():
        if name.startswith("layers."):
            columns = shapes[f"{parts[0]}.weight"][1]
            matrix_formats[name] = fmt.for_columns(columns)
    return matrix_formats


def _sensitivity_windows(windows: Windows) -> Windows:
    """The heads of windows spread over the text: short ones, so that more subjects are seen."""
    length = min(_SENSITIVITY_WINDOW, windows.ids.shape[1])
    count = min(len(windows.ids), max(1, _SENSITIVITY_TOKENS // length))
    step = len(windows.ids) // count
    return Windows(windows.ids[: count * step : step, :length])


def _fits(fmt: BlockFormat, columns: int) -> bool:
    """Whether a graph reads the block size back from the number of blocks."""
    if fmt.has_offsets and columns % fmt.block:
        return False
    return block_size(columns, -(-columns // fmt.block)) == fmt.block


def _fixed_bits(spec: DecoderSpec, scheme: WeightScheme, mixed: set[str]) -> float:
    """Stored bits of everything but the mixed matrices."""
    shapes, matrices = canonical_shapes(spec), matrix_parts(spec)
    total, within = 0.0, {f"{part}.weight" for name in matrices for part in matrices[name]}
    for name in matrices.keys() - mixed:
        rows, columns = shapes[f"{matrices[name][0]}.weight"]
        fmt = scheme.table(spec.tied) if name == "embed" else scheme.embedding
        total += fmt.stored_bits(rows, columns)
    for name, shape in shapes.items():
        if name not in within:
            total += 32 * shape[0]
    return total
