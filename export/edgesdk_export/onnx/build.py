"""Build an ONNX bundle model from a decoder that a family file describes."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from edgesdk_quantize.divergence import Divergence

import edgesdk
from edgesdk.bundle.manifest import ModelShape, Quantization
from edgesdk.bundle.spec import DecoderSpec
from edgesdk_export.built_model import BuiltModel, StepProgress
from edgesdk_export.calibration.calibrate import CalibrationSettings, calibrate_decoder
from edgesdk_export.onnx import WeightScheme, write_decoder
from edgesdk_export.onnx.writer import DATA_FILE
from edgesdk_export.padded_heads import with_padded_heads
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise import compare
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint, LayerwiseOnnxModel
from edgesdk_export.resume import ResumeState
from edgesdk_export.selftest.logits import onnx_logits
from edgesdk_export.selftest.weight_noise import checkpoint_logits
from edgesdk_export.tokenizers import TextFiles
from edgesdk_export.weights import Decoder


def build_onnx(
    decoder: Decoder,
    folder: Path,
    scheme: WeightScheme,
    progress: ExportProgress,
    *,
    text: TextFiles,
    calibration: CalibrationSettings | None = None,
    resume: ResumeState | None = None,
) -> BuiltModel:
    """Write the ONNX model of a decoder into `folder`.

    Args:
        text: the checkpoint's tokenizer, for the calibration text.
        calibration: None = each weight is rounded by itself.
        resume: what a killed process with the same arguments had finished; None = nothing.

    Raises:
        ExportError: a weight cannot be stored, or the calibration text is too short.
        RequestError: the calibration does not go with the scheme.
    """
    decoder = with_padded_heads(decoder)
    spec = decoder.spec
    source, quantizer, method = decoder, None, ""
    if calibration is not None:
        calibrated = calibrate_decoder(
            decoder,
            scheme,
            calibration,
            tokenizer_json=text.tokenizer_json,
            bos=text.entry.bos_token_id if text.entry.add_bos else None,
            work=folder,
            progress=progress,
            resume=resume,
        )
        source, quantizer, method = calibrated.decoder, calibrated.quantizer, calibrated.method
    progress.stage(f"Writing {scheme.name} layers", spec.layers)
    written = write_decoder(
        source,
        folder,
        scheme,
        lambda done, _: progress.advance(done),
        quantizer,
        None if resume is None else resume.journal(DATA_FILE),
    )

    model_path = folder / written.model_file

    def measure(windows: Windows, steps: StepProgress) -> Divergence:
        reference, candidate = LayerwiseCheckpoint(decoder), LayerwiseOnnxModel(spec, model_path)
        return compare(reference, candidate, windows, progress=steps)

    return BuiltModel(
        shape=shape_of(spec),
        # Through JSON, so that what is stored equals what is read back (lists, not tuples).
        spec=json.loads(json.dumps(dataclasses.asdict(spec))),
        model_file=written.model_file,
        quantization=Quantization(
            weights=scheme.linear.name if quantizer is None else quantizer.formats,
            head=scheme.embedding.name,
            method=method or written.method,
            bits_per_weight=round(written.bits_per_weight, 3),
            source_blocks=written.source_blocks,
        ),
        exporter=f"edgesdk {edgesdk.__version__}",
        measure=measure,
        run=functools.partial(onnx_logits, model_path),
        reference=functools.partial(checkpoint_logits, decoder),
    )


def shape_of(spec: DecoderSpec) -> ModelShape:
    """The part of a spec that engines read."""
    return ModelShape(
        architecture=spec.architecture,
        layers=spec.layers,
        hidden_size=spec.hidden_size,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        sliding_window=max((window for window in spec.windows if window), default=None),
        parameters=spec.parameters,
    )
