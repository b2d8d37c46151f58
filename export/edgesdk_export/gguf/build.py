"""Build a GGUF bundle model from a decoder that a family file describes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
from collections import Counter
from pathlib import Path

from edgesdk_quantize.divergence import Divergence

import edgesdk
from edgesdk.bundle.manifest import Quantization, SourceBlocks
from edgesdk.errors import RequestError
from edgesdk_export.built_model import BuiltModel, StepProgress
from edgesdk_export.calibration.calibrate import CalibrationSettings, measured_importance
from edgesdk_export.checkpoint import Checkpoint, open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.gguf.decoder_metadata import check_llama_cpp, context_of
from edgesdk_export.gguf.file_types import FileType
from edgesdk_export.gguf.model_name import model_name
from edgesdk_export.gguf.tokenizer_metadata import vocabulary_metadata
from edgesdk_export.gguf.writer import Importance, WrittenGguf, write_gguf
from edgesdk_export.onnx.build import shape_of
from edgesdk_export.padded_heads import with_padded_heads, without_padding
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise import compare
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint
from edgesdk_export.resume import ResumeState
from edgesdk_export.sampling import read_sampling
from edgesdk_export.selftest.logits import gguf_encoder, gguf_logits
from edgesdk_export.selftest.weight_noise import checkpoint_logits
from edgesdk_export.tokenizers import TextFiles
from edgesdk_export.weights import Decoder

MODEL_FILE = "model.gguf"


def build_gguf(
    checkpoint: Checkpoint,
    decoder: Decoder,
    folder: Path,
    file_type: FileType,
    progress: ExportProgress,
    *,
    text: TextFiles,
    calibration: CalibrationSettings | None = None,
    resume: ResumeState | None = None,
) -> BuiltModel:
    """Write the GGUF of a checkpoint into `folder`.

    Its quality is that of the stored weights, computed in float32: llama.cpp's kernels also round
    what is multiplied with them, differently on each processor.

    Args:
        resume: what a killed process with the same arguments had finished; None = nothing.

    Raises:
        CheckpointError: llama.cpp has no tokenizer like the checkpoint's.
        ExportError: llama.cpp cannot compute this decoder, a weight cannot be stored, or the
            calibration text is too short.
        RequestError: weights that are not quantized were to be calibrated.
        MissingExtra: llama-cpp-python, which has ggml's quantizers, is not installed.
    """
    spec = decoder.spec
    check_llama_cpp(spec)
    vocabulary = vocabulary_metadata(checkpoint, text, spec.vocab_size)
    sampling = read_sampling(checkpoint)
    importance = _importance(decoder, file_type, calibration, text, folder, resume, progress)
    progress.stage(f"Writing {file_type.name} layers", spec.layers)
    path = folder / MODEL_FILE
    written = write_gguf(
        decoder,
        path,
        file_type,
        name=model_name(checkpoint, text),
        vocabulary=vocabulary,
        sampling={} if sampling is None else sampling.gguf_metadata(),
        licence=checkpoint.licence,
        importance=importance,
        journal=None if resume is None else resume.journal(MODEL_FILE),
        progress=progress.advance,
    )
    stored = dataclasses.replace(spec, context_length=context_of(spec))

    def measure(windows: Windows, steps: StepProgress) -> Divergence:
        candidate = LayerwiseCheckpoint(read_decoder(open_checkpoint(path)))
        return compare(LayerwiseCheckpoint(decoder), candidate, windows, progress=steps)

    tools = ["gguf"] if file_type.name == "f32" else ["gguf", "llama-cpp-python"]
    return BuiltModel(
        shape=shape_of(stored),
        spec=json.loads(json.dumps(dataclasses.asdict(stored))),
        model_file=MODEL_FILE,
        quantization=Quantization(
            weights=file_type.name,
            head=written.head_type.name.lower(),
            method=_method(file_type, weighted=importance is not None),
            bits_per_weight=round(written.bits_per_weight, 3),
            source_blocks=_source_blocks(written),
        ),
        exporter=f"edgesdk {edgesdk.__version__}",
        versions={tool: importlib.metadata.version(tool) for tool in tools},
        measure=measure,
        run=functools.partial(gguf_logits, path),
        encode=gguf_encoder(path),
        reference=functools.partial(checkpoint_logits, decoder),
    )


def _source_blocks(written: WrittenGguf) -> tuple[SourceBlocks, ...]:
    """Count the tensors that were copied; those that were rounded again are not listed."""
    counts = Counter(written.types[name].name for name in written.copied)
    return tuple(
        SourceBlocks(source=kind, stored=kind, tensors=count, relative_error=0.0)
        for kind, count in sorted(counts.items())
    )


def _importance(
    decoder: Decoder,
    file_type: FileType,
    calibration: CalibrationSettings | None,
    text: TextFiles,
    work: Path,
    resume: ResumeState | None,
    progress: ExportProgress,
) -> Importance | None:
    if calibration is None:
        return None
    if file_type.is_float:
        raise RequestError(
            f"{file_type.name} weights are stored as they are and need no calibration.",
            hint="Choose a type with fewer bits, or the recipe fast.",
        )
    measured = measured_importance(
        with_padded_heads(decoder),
        calibration,
        tokenizer_json=text.tokenizer_json,
        bos=text.entry.bos_token_id if text.entry.add_bos else None,
        work=work,
        progress=progress,
        resume=resume,
    )
    means = {name: entry.mean for name, entry in measured.entries.items()}
    return without_padding(means, decoder)


def _method(file_type: FileType, *, weighted: bool) -> str:
    if file_type.is_float:
        return f"stored as {file_type.name}"
    return f"ggml's quantizers, {'with' if weighted else 'without'} importance weights"
