"""Export an encoder: write it, compare it with its checkpoint, open it, then rename."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import edgesdk
from edgesdk.bundle.encoder_spec import EncoderSpec
from edgesdk.bundle.manifest import (
    BundleFormat,
    EmbeddingEntry,
    Manifest,
    ModelShape,
    Quantization,
    RerankingEntry,
    SourceCheckpoint,
    TokenizerEntry,
)
from edgesdk.bundle.opening import Bundle, open_bundle
from edgesdk.bundle.writing import staged_folder, write_manifest
from edgesdk.engines.devices import FUSED_OPERATORS, graph_for
from edgesdk.errors import RequestError
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.embedding_settings import max_tokens, read_embedding
from edgesdk_export.families.encoder_reader import read_encoder
from edgesdk_export.gguf.encoder import write_gguf_encoder
from edgesdk_export.onnx.encoder_writer import quantized_weights, write_encoder
from edgesdk_export.onnx.scheme import WeightScheme
from edgesdk_export.progress import ExportProgress
from edgesdk_export.recipes import Recipe
from edgesdk_export.selftest.encoder import check_encoder, check_opens_encoder
from edgesdk_export.selftest.weight_noise import noisy_weights, weight_errors_of
from edgesdk_export.tokenizers.folder_text import read_encoder_tokenizer
from edgesdk_export.weights import Encoder

if TYPE_CHECKING:
    from edgesdk_export.pipeline import ExportJob

_TOKENIZER, _RECIPE = "tokenizer.json", "recipe.toml"
_RECORDED_VERSIONS = ("numpy", "onnx_ir", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class _EncoderExport:
    """What is the same for the bundle and for those that it is compared with."""

    job: ExportJob
    checkpoint: Checkpoint
    recipe: Recipe
    tokenizer_json: bytes
    embedding: EmbeddingEntry | None
    reranking: RerankingEntry | None
    notes: tuple[str, ...]

    def write(
        self,
        encoder: Encoder,
        folder: Path,
        scheme: WeightScheme,
        progress: Callable[[int], object],
    ) -> Quantization:
        """Write a bundle's files but the manifest; `progress` is told how many layers are done."""
        (folder / _TOKENIZER).write_bytes(self.tokenizer_json)
        written = write_encoder(encoder, folder, scheme, progress)
        return Quantization(
            weights=scheme.linear.name,
            head=scheme.embedding.name,
            method=written.method,
            bits_per_weight=round(written.bits_per_weight, 3),
            source_blocks=written.source_blocks,
        )

    def write_gguf(
        self, encoder: Encoder, folder: Path, progress: Callable[[int], object]
    ) -> Quantization:
        """`write` for llama.cpp."""
        (folder / _TOKENIZER).write_bytes(self.tokenizer_json)
        file_type = self.recipe.gguf_type(encoder.spec.parameters)
        bits = write_gguf_encoder(
            encoder,
            folder,
            file_type,
            progress,
            name=self.job.name,
            tokenizer_json=self.tokenizer_json,
            entry=self.embedding or EmbeddingEntry(max_tokens=encoder.spec.context_length),
        )
        return Quantization(
            weights=file_type.name,
            head=file_type.name,
            method="stored as it is" if file_type.is_float else "ggml's quantizers",
            bits_per_weight=round(bits, 3),
        )

    def seal(
        self,
        folder: Path,
        spec: EncoderSpec,
        stored: Quantization,
        *,
        model_format: BundleFormat = "onnx",
        note: str | None = None,
    ) -> None:
        """Write the manifest."""
        source = self.checkpoint
        manifest = Manifest.model_construct(
            name=self.job.name,
            format=model_format,
            target=self.job.target,
            roles={"encoder": f"model.{model_format}"},
            shape=_shape(spec),
            spec=json.loads(json.dumps(dataclasses.asdict(spec))),
            tokenizer=TokenizerEntry(file=_TOKENIZER),
            source=SourceCheckpoint(
                name=self.job.name,
                container=source.container,
                sha256=source.sha256(),
                dtypes=source.dtypes,
            ),
            quantization=stored,
            licence=source.licence or self.job.licence,
            exporter=f"edgesdk {edgesdk.__version__}",
            versions={name: importlib.metadata.version(name) for name in _RECORDED_VERSIONS},
            notes=self.notes + (() if note is None else (note,)),
            embedding=self.embedding,
            reranking=self.reranking,
            files=(),
        )
        write_manifest(folder, manifest)


def export_encoder(
    job: ExportJob, checkpoint: Checkpoint, recipe: Recipe, progress: ExportProgress
) -> Bundle:
    """Make the bundle of an encoder; see `edgesdk_export.pipeline.export`.

    Raises:
        RequestError: the job asks for what encoders are not exported to.
        ConfigMismatch: the checkpoint is not one that an `EncoderSpec` or an `EmbeddingEntry`
            can say.
    """
    _require_plain(job, recipe)
    encoder = read_encoder(checkpoint)
    spec = encoder.spec
    embedding, reranking, notes = _purpose(checkpoint, spec)
    whole = _EncoderExport(
        job=job,
        checkpoint=checkpoint,
        recipe=recipe,
        tokenizer_json=read_encoder_tokenizer(checkpoint),
        embedding=embedding,
        reranking=reranking,
        notes=checkpoint.notes + notes,
    )
    gguf = job.format == "gguf"
    exact = WeightScheme.named("fp32")
    with staged_folder(job.destination, replace=job.replace) as folder:
        progress.stage("Writing layers", spec.layers)
        if gguf:
            stored = whole.write_gguf(encoder, folder, progress.advance)
        else:
            scheme = recipe.onnx_scheme(spec.parameters)
            stored = whole.write(encoder, folder, scheme, progress.advance)
        resolved = recipe.resolved_for(job.format, spec.parameters)
        (folder / _RECIPE).write_bytes(resolved.to_toml().encode())
        whole.seal(folder, spec, stored, model_format=job.format)
        errors = weight_errors_of(stored)
        sizes = {
            name: errors.head if embeds else errors.linear
            for name, embeds in quantized_weights(spec).items()
        }
        noisy = Encoder(spec, noisy_weights(encoder.weights, sizes))
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            compared = [Path(work) / "exact", Path(work) / "noisy"]
            progress.stage("Comparing with the checkpoint", 2)
            for done, (place, weights) in enumerate(zip(compared, (encoder, noisy), strict=True)):
                place.mkdir()
                whole.seal(place, spec, whole.write(weights, place, exact, lambda layers: None))
                progress.advance(done + 1)
            note = check_encoder(folder, *compared)
        progress.stage("Hashing", 1)
        whole.seal(folder, spec, stored, model_format=job.format, note=note)
        progress.advance(1)
        check_opens_encoder(folder)
    return open_bundle(job.destination)


def _require_plain(job: ExportJob, recipe: Recipe) -> None:
    graphs = {"onnx": FUSED_OPERATORS, "gguf": "llama.cpp"}
    if graph_for(job.target, job.format) != graphs.get(job.format, ""):
        raise RequestError(
            "Encoders are exported to ONNX for graphs of any length, and BERT to GGUF.",
            hint="Leave out --format and --target.",
        )
    if job.via == "optimum" or job.merge_adapter is not None:
        raise RequestError(
            "Encoders are exported by edgesdk itself, without adapters.",
            hint="Leave out --via and --merge-adapter.",
        )
    if job.text is not None or job.calibration_text is not None:
        raise RequestError(
            "No text is used for encoders: their vectors are compared on a built-in one.",
            hint="Leave out --text and --calibration.",
        )
    if recipe.calibrates(job.format):
        raise RequestError(
            f"The recipe {recipe.name} calibrates, which encoders cannot be.",
            hint="Choose --recipe fast.",
        )


def _purpose(
    checkpoint: Checkpoint, spec: EncoderSpec
) -> tuple[EmbeddingEntry | None, RerankingEntry | None, tuple[str, ...]]:
    """What the model is for, and what its user should know of that."""
    limit = max_tokens(checkpoint.folder, spec.context_length)
    if spec.head is not None:
        return None, RerankingEntry(max_tokens=limit, sigmoid=_has_sigmoid(checkpoint)), ()
    entry = read_embedding(checkpoint, context=spec.context_length)
    if entry is not None:
        return entry, None, ()
    note = (
        "The checkpoint does not say how hidden states become a vector: their mean does, with"
        " the length 1."
    )
    return EmbeddingEntry(max_tokens=limit), None, (note,)


def _has_sigmoid(checkpoint: Checkpoint) -> bool:
    """Whether sentence-transformers puts the score through a sigmoid: always, if nobody says no."""
    settings = checkpoint.config.get("sentence_transformers")
    named = settings.get("activation_fn") if isinstance(settings, dict) else None
    named = named or checkpoint.config.get("sbert_ce_default_activation_function")
    return named is None or not str(named).endswith("Identity")


def _shape(spec: EncoderSpec) -> ModelShape:
    return ModelShape(
        architecture=spec.architecture,
        layers=spec.layers,
        hidden_size=spec.hidden_size,
        heads=spec.heads,
        kv_heads=spec.heads,
        head_size=spec.head_size,
        vocab_size=spec.vocab_size,
        context_length=spec.context_length,
        parameters=spec.parameters,
    )
