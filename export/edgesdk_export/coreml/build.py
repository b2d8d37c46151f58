"""Build the Core ML package of a decoder that a family file describes.

The ONNX model is built first, with all that recipes and calibration can do, and goes on from where
an earlier process stopped. The package then gets its very codes; the ONNX files leave the bundle.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
from pathlib import Path

import numpy as np
from edgesdk_quantize.divergence import Divergence
from edgesdk_quantize.formats import FloatFormat
from edgesdk_quantize.formats.blocks import BLOCK_OPERATOR

from edgesdk.bundle import coreml_io
from edgesdk.bundle.manifest import StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.coreml.step_inputs import StepInputs
from edgesdk.errors import ExportError, MissingExtra
from edgesdk_export.built_model import BuiltModel, StepProgress
from edgesdk_export.calibration.calibrate import CalibrationSettings
from edgesdk_export.onnx import WeightScheme, read_stored
from edgesdk_export.onnx.build import build_onnx
from edgesdk_export.onnx.stored_weights import StoredTensors
from edgesdk_export.onnx.writer import DATA_FILE, MODEL_FILE
from edgesdk_export.padded_heads import with_padded_heads
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise import compare
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint, LayerwiseOnnxModel
from edgesdk_export.resume import ResumeState
from edgesdk_export.selftest.onnx_decoder import Float32, Ids
from edgesdk_export.static_sizes import DEFAULT_PREFILL, static_shape
from edgesdk_export.tokenizers import TextFiles
from edgesdk_export.weights import Decoder

PACKAGE = "model.mlpackage"


def build_coreml(
    decoder: Decoder,
    folder: Path,
    scheme: WeightScheme,
    progress: ExportProgress,
    *,
    work: Path,
    prefill: int | None = None,
    window: int | None = None,
    text: TextFiles,
    calibration: CalibrationSettings | None = None,
    resume: ResumeState | None = None,
) -> BuiltModel:
    """Write the Core ML package of a decoder into `folder`.

    Args:
        scheme: how weights are stored, without float32, scales in 8 bits and real offsets.
        work: a folder for the ONNX files, on the same disk, which live as long as the result.
        prefill, window: see `edgesdk_export.static_sizes.static_shape`; None = its defaults.
        text, calibration, resume: see `edgesdk_export.onnx.build.build_onnx`.

    Raises:
        MissingExtra: coremltools is not installed.
        ExportError: a weight cannot be stored.
        RequestError: the calibration does not go with the scheme, or the model has no such window.
    """
    try:
        from edgesdk_export.coreml.package import write_package
    except ImportError:
        raise MissingExtra("coremltools", extra="coreml", needed_for="Core ML packages") from None
    _require_formats(scheme)
    static = static_shape(decoder.spec, prefill=prefill or DEFAULT_PREFILL, window=window)
    built = build_onnx(
        decoder, folder, scheme, progress, text=text, calibration=calibration, resume=resume
    )
    decoder = with_padded_heads(decoder)
    spec = decoder.spec
    for name in (MODEL_FILE, DATA_FILE):
        (folder / name).replace(work / name)
    progress.stage("Writing the Core ML package", 1)
    tensors = read_stored(work / MODEL_FILE)
    bits = write_package(folder / PACKAGE, spec, tensors, static)
    progress.advance(1)

    def measure(windows: Windows, steps: StepProgress) -> Divergence:
        candidate = LayerwiseOnnxModel(spec, work / MODEL_FILE, _read_as_stored)
        return compare(LayerwiseCheckpoint(decoder), candidate, windows, progress=steps)

    return dataclasses.replace(
        built,
        shape=built.shape.model_copy(update={"context_length": static.window}),
        model_file=PACKAGE,
        static=static,
        quantization=built.quantization.model_copy(
            update={
                "bits_per_weight": round(bits / spec.parameters, 3),
                # That operator is onnxruntime's.
                "method": built.quantization.method.removeprefix(f"{BLOCK_OPERATOR}, "),
            }
        ),
        measure=measure,
        run=functools.partial(package_logits, folder / PACKAGE, spec, static),
        versions={**built.versions, "coremltools": importlib.metadata.version("coremltools")},
    )


def _require_formats(scheme: WeightScheme) -> None:
    """Refuse what no package can have, before anything is quantized."""
    for fmt in (scheme.linear, scheme.embedding):
        if isinstance(fmt, FloatFormat) and fmt.dtype != np.float16:
            raise ExportError(
                "Core ML's Neural Engine computes in float16, and a package stores no float32.",
                hint="Choose --bits 16, 8 or 4.",
            )


def package_logits(path: Path, spec: DecoderSpec, static: StaticShape, ids: Ids) -> Float32:
    """Compute logits float32 [n, vocab] of tokens int64 [n] by what a package says, in chunks and,
    for the last token, by itself."""
    from edgesdk_export.coreml.interpreter import PackageInterpreter

    package = PackageInterpreter(path)
    states = package.new_states(coreml_io.PREFILL)
    inputs = StepInputs(spec, static)
    starts = [*range(0, len(ids) - 1, static.prefill_tokens), len(ids) - 1, len(ids)]
    rows = []
    for start, stop in itertools.pairwise(starts):
        function, fed = inputs.of(ids[start:stop].tolist(), start, len(ids))
        logits = package.run(function, fed, states)[coreml_io.LOGITS]
        rows.append(logits[0, : stop - start].astype(np.float32))
    return np.concatenate(rows)


def _read_as_stored(path: Path) -> StoredTensors:
    from edgesdk_export.coreml.weights import as_stored

    return as_stored(read_stored(path))
