"""Export a checkpoint to a bundle: build, test, measure, write the manifest, open, then rename."""

from __future__ import annotations

import errno
import importlib.metadata
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgesdk.bundle.manifest import BundleFormat, Manifest, Quality, SourceCheckpoint
from edgesdk.bundle.opening import Bundle, open_bundle
from edgesdk.bundle.writing import resume_folder, staged_folder, write_manifest
from edgesdk.engines.devices import DEFAULT_TARGET, graph_for
from edgesdk.errors import ExportError, RequestError, requires_extra
from edgesdk_export.adapters.merging import adapter_hash, with_merged_adapter
from edgesdk_export.built_model import BuiltModel
from edgesdk_export.checkpoint import Checkpoint, open_checkpoint
from edgesdk_export.coreml.build import build_coreml
from edgesdk_export.embedding_settings import decoder_embedding
from edgesdk_export.encoder_export import export_encoder
from edgesdk_export.families import read_decoder
from edgesdk_export.families.encoder_reader import is_encoder
from edgesdk_export.gguf.build import build_gguf
from edgesdk_export.npu import static_scheme
from edgesdk_export.npu.build import build_static
from edgesdk_export.onnx.build import build_onnx
from edgesdk_export.optimum import build_with_optimum
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import (
    EvaluationText,
    Windows,
    cut_windows,
    default_text,
)
from edgesdk_export.quality.report import summary
from edgesdk_export.recipes import Recipe, load_recipe
from edgesdk_export.resume import ResumeState
from edgesdk_export.resume.inputs import inputs_hash
from edgesdk_export.sampling import read_sampling
from edgesdk_export.selftest.check import TOKENS as SELF_TEST_TOKENS
from edgesdk_export.selftest.check import check_model
from edgesdk_export.selftest.opening import check_opens
from edgesdk_export.selftest.token_ids import check_token_ids
from edgesdk_export.tokenizers import TextFiles, read_text
from edgesdk_export.tokenizers.settling import SettledText, settle_text
from edgesdk_export.tokenizers.text_files import TOOL_TEMPLATE_NAME
from edgesdk_export.weights import Decoder

TEMPLATE_FILE = "chat_template.jinja"
RECIPE_FILE = "recipe.toml"

# A larger model takes longer per token, and its mean is as sure with fewer of them.
_LARGE = 300_000_000
_TOKENS_SMALL, _TOKENS_LARGE = 8_192, 2_048
# The variants of graph that can be written, as the records of devices name them.
_GRAPHS: dict[BundleFormat, tuple[str, ...]] = {
    "onnx": ("fused-operators", *static_scheme.GRAPHS),
    "gguf": ("llama.cpp",),
    "coreml": ("ml-program",),
    "litert": ("litert-signatures",),
}
# Those that take texts of any length.
_OF_ANY_LENGTH = ("fused-operators", "llama.cpp")
_RECORDED_VERSIONS = ("numpy", "onnx_ir", "onnxruntime")


@dataclass(frozen=True)
class ExportJob:
    """A checkpoint to export, and how to do it.

    Attributes:
        checkpoint: a folder with safetensors, or a `.gguf` file.
        destination: the bundle's folder; its parent is made where it is missing.
        name: the bundle's name, also the source's in its manifest.
        format: of the bundle: what runs it.
        target: the device where it will run, as its record names it.
        recipe: how weights are stored; None = "fast".
        scheme: weights that the recipe is overruled with: "fp32", "fp16", "int8", "int4" or a
            budget such as "4.5" in ONNX, a type such as "q4_k_m" in GGUF.
        via: who draws the graph: our own families, or optimum for any other architecture.
        calibration_text: what recipes that calibrate run; None = what the model itself writes, or
            for a large one a text that lies at hand.
        text: what quality is measured on; None = the built-in text.
        quality_tokens: on how many tokens; 0 = not measured, None = by the model's size.
        window, prefill: of graphs of fixed shapes: the tokens that a conversation may have, and
            those of a prompt that are computed at a time; None = as the recipe says.
        licence: where the checkpoint does not say.
        merge_adapter: the folder of a LoRA that PEFT saved, which is added to the weights.
        replace: whether a bundle that stands at `destination` may be replaced.
    """

    checkpoint: Path
    destination: Path
    name: str
    format: BundleFormat = "onnx"
    target: str = DEFAULT_TARGET
    recipe: Recipe | None = None
    scheme: str | None = None
    via: Literal["edgesdk", "optimum"] = "edgesdk"
    calibration_text: EvaluationText | None = None
    text: EvaluationText | None = None
    quality_tokens: int | None = None
    window: int | None = None
    prefill: int | None = None
    licence: str | None = None
    merge_adapter: Path | None = None
    replace: bool = False


def export(job: ExportJob, progress: ExportProgress) -> Bundle:
    """Make the bundle; on any error nothing is left, and an older bundle there is untouched.

    What a killed or interrupted export had finished waits beside the destination: one with the same
    job and checkpoint goes on from there, any other one removes it.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is of no known family.
        RequestError: the recipe, the weights asked for or the target do not fit the format.
        ExportError: the export failed, or the disk is full.
        BundleError: something stands at the destination.
    """
    recipe = _recipe(job)
    _require_target(job)
    # Before the folder: a checkpoint that is not there is no reason to lose what was kept.
    checkpoint = open_checkpoint(job.checkpoint)
    if is_encoder(checkpoint):
        with _explain_full_disk(job):
            return export_encoder(job, checkpoint, recipe, progress)
    inputs = _inputs(job, recipe.to_toml())
    staged = staged_folder(job.destination, replace=job.replace, inputs=inputs)
    with _explain_full_disk(job), staged as folder:
        resume = ResumeState(resume_folder(folder))
        resume.clear_unfinished(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            built, settled, recipe = _build(
                checkpoint, folder, Path(work), recipe, job, resume, progress
            )
            text, notes = settled.text, checkpoint.notes + settled.notes
            if job.merge_adapter is not None:
                notes += (f"The LoRA {job.merge_adapter.resolve().name} is merged into it.",)
            _write_text(folder, text)
            _write_recipe(folder, recipe.resolved_for(job.format, built.shape.parameters))
            notes += _test(built, text, progress)
            quality = _measure(built, text, job, progress)
        progress.stage("Hashing", 1)
        write_manifest(folder, _manifest(checkpoint, text, notes, built, quality, job))
        progress.advance(1)
        check_opens(folder, progress)
    return open_bundle(job.destination)


def _require_target(job: ExportJob) -> None:
    graph = graph_for(job.target, job.format)
    if graph not in _GRAPHS[job.format]:
        raise RequestError(
            f"No graph for the device {job.target!r} can be written as {job.format.upper()}.",
            hint="Choose another target, or another format.",
        )
    if graph in _OF_ANY_LENGTH and (job.window or job.prefill):
        raise RequestError(
            f"The graph for the device {job.target!r} takes texts of any length.",
            hint="Leave out --window and --prefill, or choose a target with an NPU.",
        )
    if graph in static_scheme.GRAPHS and job.via == "optimum":
        raise RequestError(
            f"optimum makes no graph for the device {job.target!r}.", hint="Leave out --via."
        )


def _inputs(job: ExportJob, recipe: str) -> str | None:
    """Hash what decides the bundle, see `inputs_hash`; None = optimum's exports begin anew."""
    if job.via == "optimum":
        return None
    texts = {"calibration": job.calibration_text, "text": job.text}
    hashes = {key: None if text is None else text.sha256 for key, text in texts.items()}
    names = {f"{key} name": None if text is None else text.name for key, text in texts.items()}
    return inputs_hash(
        job.checkpoint,
        {
            "name": job.name,
            "format": job.format,
            "target": job.target,
            "recipe": recipe,
            "quality_tokens": job.quality_tokens,
            "window": job.window,
            "prefill": job.prefill,
            "licence": job.licence,
            "merge_adapter": adapter_hash(job.merge_adapter),
            **hashes,
            **names,
        },
    )


def _recipe(job: ExportJob) -> Recipe:
    if job.via == "optimum" and (job.format != "onnx" or job.merge_adapter is not None):
        what = job.format.upper() if job.merge_adapter is None else "merged model"
        raise RequestError(f"optimum makes no {what}.", hint="Leave out --via.")
    recipe = job.recipe or load_recipe("fast")
    if job.scheme is not None:
        recipe = recipe.with_weights(job.format, job.scheme)
    if job.format == "coreml":
        recipe = recipe.with_plain_blocks()
    recipe.require(job.format)
    if job.via == "optimum" and recipe.calibrates("onnx"):
        raise RequestError(
            f"The recipe {recipe.name} calibrates, which a model that optimum draws cannot be.",
            hint="Choose --recipe fast.",
        )
    return recipe


def _build(
    checkpoint: Checkpoint,
    folder: Path,
    work: Path,
    recipe: Recipe,
    job: ExportJob,
    resume: ResumeState,
    progress: ExportProgress,
) -> tuple[BuiltModel, SettledText, Recipe]:
    """The model, the text side that fits it, and the recipe by which it was made."""
    found, where = read_text(checkpoint), str(checkpoint.path)
    if job.via == "optimum":
        built = build_with_optimum(checkpoint, folder, recipe.onnx_scheme, progress, work=work)
        return built, settle_text(found, built.shape.vocab_size, where=where), recipe
    decoder = with_merged_adapter(read_decoder(checkpoint), job.merge_adapter, where=where)
    settled = settle_text(found, decoder.spec.vocab_size, where=where)
    text = settled.text
    parameters = decoder.spec.parameters
    graph = graph_for(job.target, job.format)
    if graph in static_scheme.GRAPHS:
        recipe = recipe.for_static(parameters, prefill=job.prefill, window=job.window)
    calibration = recipe.calibration_for(job.format, job.calibration_text)
    if job.format == "gguf":
        file_type = recipe.gguf_type(parameters)
        built = build_gguf(
            checkpoint,
            decoder,
            folder,
            file_type,
            progress,
            text=text,
            calibration=calibration,
            resume=resume,
        )
    elif job.format == "coreml":
        built = build_coreml(
            decoder,
            folder,
            recipe.onnx_scheme(parameters),
            progress,
            work=work,
            prefill=job.prefill,
            window=job.window,
            text=text,
            calibration=calibration,
            resume=resume,
        )
    elif job.format == "litert":
        with requires_extra("litert", needed_for="Exporting for LiteRT"):
            from edgesdk_export.litert.build import build_litert
        tflite_scheme = recipe.tflite_scheme(parameters)
        built = build_litert(
            decoder, folder, tflite_scheme, progress, prefill=job.prefill, window=job.window
        )
    elif graph in static_scheme.GRAPHS:
        built = _build_static(decoder, folder, recipe, graph, job, text, resume, progress)
    else:
        scheme = recipe.onnx_scheme(parameters)
        built = build_onnx(
            decoder, folder, scheme, progress, text=text, calibration=calibration, resume=resume
        )
    return built, settled, recipe


def _build_static(
    decoder: Decoder,
    folder: Path,
    recipe: Recipe,
    graph: str,
    job: ExportJob,
    text: TextFiles,
    resume: ResumeState,
    progress: ExportProgress,
) -> BuiltModel:
    sizes = recipe.static
    assert sizes is not None
    scheme = static_scheme.static_scheme(
        recipe.onnx_scheme(decoder.spec.parameters), graph, activations=sizes.activations
    )
    if scheme.quantizes_activations and recipe.calibrates("onnx"):
        raise RequestError(
            f"The recipe {recipe.name} searches codes of blocks, which {scheme.name} has not.",
            hint="Choose --recipe fast.",
        )
    return build_static(
        decoder,
        folder,
        scheme,
        progress,
        prefill=sizes.prefill,
        window=None if sizes.window == "auto" else sizes.window,
        text=text,
        calibration=recipe.calibration_for(
            "onnx", job.calibration_text, needed=scheme.quantizes_activations
        ),
        resume=resume,
    )


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    (folder / RECIPE_FILE).write_bytes(recipe.to_toml().encode())


def _write_text(folder: Path, text: TextFiles) -> None:
    (folder / text.entry.file).write_bytes(text.tokenizer_json)
    if text.chat_template is not None:
        (folder / TEMPLATE_FILE).write_bytes(text.chat_template.encode())
    if text.tool_template is not None:
        path = folder / TOOL_TEMPLATE_NAME
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.tool_template.encode())


def _test(built: BuiltModel, text: TextFiles, progress: ExportProgress) -> tuple[str, ...]:
    """What the user should know of the file; one that is wrong raises."""
    context = min(built.shape.context_length, SELF_TEST_TOKENS)
    check_model(built, _windows(default_text(), text, tokens=1, context=context), progress)
    return () if built.encode is None else check_token_ids(text.tokenizer_json, built.encode)


def _measure(
    built: BuiltModel, text: TextFiles, job: ExportJob, progress: ExportProgress
) -> Quality | None:
    tokens = job.quality_tokens
    if tokens is None:
        tokens = _TOKENS_LARGE if built.shape.parameters >= _LARGE else _TOKENS_SMALL
    if tokens == 0:
        return None
    source = job.text or default_text()
    windows = _windows(source, text, tokens=tokens, context=built.shape.context_length)
    started = False

    def steps(done: int, total: int) -> None:
        nonlocal started
        if not started:
            progress.stage("Measuring quality", total)
            started = True
        progress.advance(done)

    # The kernels of llama.cpp and LiteRT round activations in ways of their own (see `build_gguf`),
    # and Core ML's to float16.
    return summary(built.measure(windows, steps), source, weights_only=job.format != "onnx")


def _windows(source: EvaluationText, text: TextFiles, *, tokens: int, context: int) -> Windows:
    bos = text.entry.bos_token_id if text.entry.add_bos else None
    return cut_windows(source, text.tokenizer_json, tokens=tokens, bos=bos, context=context)


def _manifest(
    checkpoint: Checkpoint,
    text: TextFiles,
    notes: tuple[str, ...],
    built: BuiltModel,
    quality: Quality | None,
    job: ExportJob,
) -> Manifest:
    entry = text.entry.model_copy(
        update={"chat_template": TEMPLATE_FILE if text.chat_template is not None else None}
    )
    # The files are listed when the folder is sealed, which also validates the whole.
    return Manifest.model_construct(
        name=job.name,
        format=job.format,
        target=job.target,
        roles=built.roles or {"decoder": built.model_file},
        shape=built.shape,
        static=built.static,
        spec=built.spec,
        tokenizer=entry,
        source=SourceCheckpoint(
            name=job.name,
            container=checkpoint.container,
            sha256=checkpoint.sha256(),
            dtypes=checkpoint.dtypes,
        ),
        quantization=built.quantization,
        quality=quality,
        sampling=read_sampling(checkpoint),
        licence=checkpoint.licence or job.licence,
        exporter=built.exporter,
        versions={
            **{name: importlib.metadata.version(name) for name in _RECORDED_VERSIONS},
            **built.versions,
        },
        notes=notes,
        embedding=decoder_embedding(checkpoint, built.shape.context_length),
        files=(),
    )


@contextmanager
def _explain_full_disk(job: ExportJob) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ExportError(
            f"The disk that holds {job.destination.parent} is full; nothing was left behind.",
            hint="Free some space, or name another place with --output.",
        ) from None
