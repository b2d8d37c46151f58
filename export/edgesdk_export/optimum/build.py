"""Build an ONNX model of any architecture that optimum knows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from edgesdk_quantize.divergence import Divergence
from onnx_ir.passes.common import IdentityEliminationPass

from edgesdk.bundle.manifest import ModelShape, Quantization
from edgesdk.errors import ExportError
from edgesdk_export.built_model import BuiltModel, StepProgress
from edgesdk_export.checkpoint import Checkpoint
from edgesdk_export.onnx.scheme import WeightScheme
from edgesdk_export.onnx.writer import MODEL_FILE
from edgesdk_export.optimum.attention_patterns import find_attentions
from edgesdk_export.optimum.environment import ready_environment
from edgesdk_export.optimum.equality import check_equality, float32_logits, measure_divergence
from edgesdk_export.optimum.masking import HeadShape, Masking, measure_masking
from edgesdk_export.optimum.quantize_graph import store_quantized
from edgesdk_export.optimum.rewrite import rewrite
from edgesdk_export.optimum.run_optimum import RawExport, run_optimum
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.selftest.logits import onnx_logits


def build_with_optimum(
    checkpoint: Checkpoint,
    folder: Path,
    choose: Callable[[int], WeightScheme],
    progress: ExportProgress,
    *,
    work: Path,
) -> BuiltModel:
    """Write the ONNX model of any decoder that optimum knows into `folder`.

    Args:
        choose: how the weights of a model of so many parameters are stored.
        work: an empty folder, which must stay until the quality is measured: the reference is the
            rewritten float32 graph in it, which was checked against torch.

    Raises:
        CheckpointError: the checkpoint's config.json cannot be used.
        ExportError: see `export_with_optimum`; or the checkpoint is a GGUF.
    """
    if checkpoint.container != "safetensors":
        raise ExportError(
            f"{checkpoint.path} is a {checkpoint.container.upper()} file, which optimum cannot"
            " export.",
            hint="Give --via optimum a folder with config.json and safetensors.",
        )
    model = export_with_optimum(checkpoint.path, folder, choose, progress, work=work)

    def measure(windows: Windows, steps: StepProgress) -> Divergence:
        return measure_divergence(model.float32_path, folder / model.model_file, windows, steps)

    return BuiltModel(
        shape=model.shape,
        spec=None,
        model_file=model.model_file,
        quantization=Quantization(
            weights=model.scheme.linear.name,
            head=model.scheme.embedding.name,
            method=model.scheme.method,
            bits_per_weight=round(model.bits_per_weight, 3),
        ),
        exporter=f"optimum {model.versions['optimum']}",
        measure=measure,
        # This route holds the model in memory anyway, and a graph that others drew may have
        # branches, which cannot be cut.
        run=functools.partial(onnx_logits, folder / model.model_file, large=math.inf),
        reference=functools.partial(float32_logits, model.float32_path, work),
        versions=model.versions,
    )


@dataclass(frozen=True)
class OptimumModel:
    """The result of `export_with_optimum`.

    Attributes:
        model_file: the graph's file name; its weights lie beside it in one data file.
        bits_per_weight: as in `edgesdk.bundle.manifest.Quantization`.
        float32_path: the rewritten graph before quantizing, in the work folder.
        float32_difference: largest absolute difference of its logits to torch's.
        versions: of optimum and of what it ran on.
    """

    model_file: str
    shape: ModelShape
    scheme: WeightScheme
    bits_per_weight: float
    float32_path: Path
    float32_difference: float
    versions: dict[str, str]


def export_with_optimum(
    checkpoint: Path,
    out: Path,
    choose: Callable[[int], WeightScheme],
    progress: ExportProgress,
    *,
    work: Path,
    environment: Path | None = None,
) -> OptimumModel:
    """Write `model.onnx` and its data file into the existing folder `out`, through optimum.

    Unlike the exporter's own path this holds the whole model in memory, in optimum's process.

    Args:
        checkpoint: a folder with config.json and safetensors.
        choose: how the weights of a model of so many parameters are stored.
        work: an existing, empty folder for the float32 graph, which takes about the size of the
            model in float32; the caller removes it.
        environment: see `ready_environment`.

    Raises:
        DamagedCheckpoint, ConfigMismatch: the checkpoint's config.json cannot be used.
        ExportError: optimum's environment cannot be made, optimum fails, or its graph cannot be
            rewritten; the message says where and what.
    """
    python = ready_environment(progress, place=environment)
    progress.stage("Exporting with optimum", 1)
    raw = run_optimum(python, checkpoint.resolve(), work)
    progress.advance(1)
    model, heads, maskings = _rewritten(raw, progress)
    float32_path = raw.model_path.with_name("rewritten.onnx")
    ir.save(model, float32_path)
    progress.stage("Checking the graph against torch", 1)
    difference = check_equality(float32_path, raw.probe_ids, raw.probe_logits)
    progress.advance(1)
    chosen = choose(raw.parameters)
    progress.stage(f"Writing {chosen.name} weights", 1)
    bits = store_quantized(model, chosen, out, raw.parameters)
    progress.advance(1)
    windows = [masking.window for masking in maskings if masking.window is not None]
    shape = ModelShape(
        architecture=raw.architecture,
        layers=len(maskings),
        hidden_size=raw.hidden_size,
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_size=heads.head_size,
        vocab_size=raw.probe_logits.shape[1],
        context_length=raw.context_length,
        sliding_window=max(windows, default=None),
        parameters=raw.parameters,
    )
    return OptimumModel(MODEL_FILE, shape, chosen, bits, float32_path, difference, raw.versions)


def _rewritten(
    raw: RawExport, progress: ExportProgress
) -> tuple[ir.Model, HeadShape, list[Masking]]:
    model = ir.load(raw.model_path)
    # Weights that hold the same numbers reach their users through an Identity.
    IdentityEliminationPass()(model)
    attentions = find_attentions(model.graph)
    cache = attentions[0].past_key.shape
    sizes = () if cache is None else tuple(cache)
    if len(sizes) != 4 or not isinstance(sizes[1], int) or not isinstance(sizes[3], int):
        raise ExportError(
            f"The KV cache of optimum's graph has the shape {list(sizes)}; needed is"
            " [batch, kv_heads, tokens, head_size].",
            hint="This architecture cannot be exported for the shared KV cache.",
        )
    heads = HeadShape(raw.heads, sizes[1], sizes[3])
    progress.stage("Rewriting the attention of each layer", len(attentions))
    maskings = []
    for masking in measure_masking(
        model.graph, attentions, heads, raw.context_length, raw.model_path.parent
    ):
        maskings.append(masking)
        progress.advance(len(maskings))
    rewrite(model, attentions, maskings, heads)
    return model, heads, maskings
