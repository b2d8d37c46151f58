"""Take calibration settings, and make the quantizer that follows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgesdk_quantize.formats import FloatFormat
from edgesdk_quantize.methods.gptq import RoundingOptions

from edgesdk.errors import RequestError
from edgesdk_export.calibration.calibration_text import (
    DEFAULT_CALIBRATION_TOKENS,
    GENERATED_NAME,
    builtin_calibration_text,
    calibration_windows,
    generate_calibration_text,
)
from edgesdk_export.calibration.channel_scales import apply_awq
from edgesdk_export.calibration.format_mix import formats_to_mix, mixed_formats, one_format
from edgesdk_export.calibration.importance import ImportanceMatrix, collect_importance
from edgesdk_export.calibration.quantizers import SequentialQuantizer, WeightedQuantizer
from edgesdk_export.calibration.sensitivity import measure_costs
from edgesdk_export.onnx import LayerQuantizer, WeightScheme
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import EvaluationText, Windows
from edgesdk_export.resume import Arrays, ResumeState, compute_once
from edgesdk_export.weights import Decoder

# Sensitivities are of the first windows only: each layer's stream runs through all layers behind.
_SENSITIVITY_TOKENS = 1_024
_SENSITIVITY_WINDOW = 256
_MAX_GENERATING_PARAMETERS = 2_000_000_000


@dataclass(frozen=True)
class CalibrationSettings:
    """Settings for finding the codes of a decoder's linear layers with the help of a text.

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
    """The decoder and the quantizer that calibration leads to.

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
    resume: ResumeState | None = None,
) -> CalibrationResult:
    """Do all of calibration that comes before the first layer is written.

    Args:
        bos: what every text begins with; None = nothing.
        work: a folder for files that are needed meanwhile.
        resume: what a killed process with the same arguments had finished; None = nothing.

    Raises:
        ExportError: the text is too short.
        RequestError: the scheme has no blocks, or no choice of formats is as small as asked for.
    """
    if isinstance(scheme.linear, FloatFormat):
        raise RequestError(
            f"{scheme.name} weights are stored as they are and need no calibration.",
            hint="Choose int4 or int8, or leave calibration out.",
        )
    text_name, windows = chosen_windows(
        decoder, calibration, tokenizer_json, bos, work, resume, progress
    )
    matrix_formats = one_format(decoder.spec, scheme.linear)
    if calibration.awq:
        progress.stage("Searching channel scales", decoder.spec.layers)
        decoder = apply_awq(
            decoder, windows, matrix_formats, resume=resume, progress=progress.advance
        )
    if calibration.bits is not None:
        # After the scales: they even out what matrices cost.
        progress.stage("Measuring sensitivity", decoder.spec.layers)
        mixed = formats_to_mix(scheme)
        costs = measure_costs(
            decoder, _sensitivity_windows(windows), mixed, resume=resume, progress=progress.advance
        )
        matrix_formats = mixed_formats(decoder.spec, scheme, costs, calibration.bits)
    quantizer: LayerQuantizer
    if calibration.method == "gptq":
        rounding = RoundingOptions(sweeps=calibration.sweeps)
        quantizer = SequentialQuantizer(decoder, windows, matrix_formats, rounding, resume)
    else:
        progress.stage("Measuring importance", decoder.spec.layers)
        importance = collect_importance(
            decoder, windows, text_name=text_name, resume=resume, progress=progress.advance
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
    resume: ResumeState | None = None,
) -> ImportanceMatrix:
    """The importance of every matrix's inputs, for ggml's quantizers; of `calibration` only the
    text and its tokens count. See `calibrate_decoder`.

    Raises:
        ExportError: the text is too short.
    """
    text_name, windows = chosen_windows(
        decoder, calibration, tokenizer_json, bos, work, resume, progress
    )
    progress.stage("Measuring importance", decoder.spec.layers)
    return collect_importance(
        decoder, windows, text_name=text_name, resume=resume, progress=progress.advance
    )


def chosen_windows(
    decoder: Decoder,
    calibration: CalibrationSettings,
    tokenizer_json: bytes,
    bos: int | None,
    work: Path,
    resume: ResumeState | None,
    progress: ExportProgress,
) -> tuple[str, Windows]:
    """The name and the windows of the text of `calibration`; see `calibrate_decoder`.

    Raises:
        ExportError: the text is too short.
    """
    if calibration.text is None and decoder.spec.parameters <= _MAX_GENERATING_PARAMETERS:
        progress.stage("Writing calibration text", 1)

        def write() -> Arrays:
            return {
                "ids": generate_calibration_text(
                    decoder, work, bos=bos, tokens=calibration.tokens
                ).ids
            }

        windows = Windows(compute_once(resume, "calibration-text", write)["ids"])
        progress.advance(1)
        return GENERATED_NAME, windows
    text = calibration.text or builtin_calibration_text()
    context = decoder.spec.context_length
    return text.name, calibration_windows(
        text, tokenizer_json, bos=bos, context=context, tokens=calibration.tokens
    )


def _sensitivity_windows(windows: Windows) -> Windows:
    """The heads of windows spread over the text: short ones, so that more subjects are seen."""
    length = min(_SENSITIVITY_WINDOW, windows.ids.shape[1])
    count = min(len(windows.ids), max(1, _SENSITIVITY_TOKENS // length))
    step = len(windows.ids) // count
    return Windows(windows.ids[: count * step : step, :length])
