"""Measure finished bundles against a checkpoint, all on the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edgesdk_quantize.divergence import Divergence

from edgesdk.bundle.manifest import Quality
from edgesdk.bundle.opening import Bundle
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import RequestError
from edgesdk_export.checkpoint import open_checkpoint
from edgesdk_export.families import read_decoder
from edgesdk_export.padded_heads import padded_size
from edgesdk_export.quality.evaluation_text import EvaluationText, Windows, cut_windows
from edgesdk_export.quality.layerwise import LayerDivergence, LayerwiseModel, compare_many
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint, LayerwiseOnnxModel
from edgesdk_export.tokenizers import read_text

# Each costs a pass through the head for every layer.
_LAYER_POSITIONS = 64


@dataclass(frozen=True)
class BundleQuality:
    """One bundle's figures.

    Attributes:
        kl_by_layer: in nats per position; see `edgesdk_export.quality.layerwise.LayerDivergence`.
    """

    bundle: Bundle
    quality: Quality
    kl_by_layer: tuple[float, ...]


def measure_bundles(
    bundles: Sequence[Bundle],
    checkpoint_path: Path,
    text: EvaluationText,
    *,
    tokens: int,
    progress: Callable[[int, int], None],
) -> list[BundleQuality]:
    """Measure all bundles in one pass over the checkpoint, one layer of each in memory at a time.

    ONNX weights are run by the kernels that an app will run; those of a GGUF are dequantized and
    computed with in float32, so its figures are of the weights alone.

    Args:
        tokens: of the text, in windows; the checkpoint's tokenizer cuts it.
        progress: called with (steps done, steps in all).

    Raises:
        CheckpointError: the checkpoint cannot be read.
        RequestError: a bundle is of another model, or its graph is not edgesdk's own.
        ExportError: the text is too short.
        DamagedBundle: a bundle says of its model what cannot be.
    """
    checkpoint = open_checkpoint(checkpoint_path)
    decoder = read_decoder(checkpoint)
    for bundle in bundles:
        _require_same_model(bundle, decoder.spec)
    side = read_text(checkpoint)
    shortest = min(
        decoder.spec.context_length,
        *(bundle.manifest.shape.context_length for bundle in bundles),
    )
    windows: Windows = cut_windows(
        text,
        side.tokenizer_json,
        tokens=tokens,
        bos=side.entry.bos_token_id if side.entry.add_bos else None,
        context=shortest,
    )
    stacks = [_stack(bundle) for bundle in bundles]
    layer_divergence = LayerDivergence(len(stacks), _LAYER_POSITIONS)
    found = compare_many(
        LayerwiseCheckpoint(decoder),
        stacks,
        windows,
        progress=progress,
        layer_divergence=layer_divergence,
    )
    return [
        BundleQuality(
            bundle,
            summary(one, text, weights_only=bundle.manifest.format == "gguf"),
            by_layer,
        )
        for bundle, one, by_layer in zip(bundles, found, layer_divergence.result(), strict=True)
    ]


def _stack(bundle: Bundle) -> LayerwiseModel:
    if bundle.manifest.static is not None:
        raise RequestError(
            f"{bundle.path}: graphs of fixed shapes cannot be run layer by layer.",
            hint="Its quality was measured when it was exported: edgesdk show NAME",
        )
    path = bundle.role_file("decoder")
    if bundle.manifest.format == "gguf":
        return LayerwiseCheckpoint(read_decoder(open_checkpoint(path)))
    spec = bundle.decoder_spec()
    if spec is None:
        raise RequestError(
            f"{bundle.path}: its graph was drawn by {bundle.manifest.exporter}, and cannot be run"
            " layer by layer.",
            hint="Its quality was measured when it was exported: edgesdk show NAME",
        )
    return LayerwiseOnnxModel(spec, path)


def _require_same_model(bundle: Bundle, spec: DecoderSpec) -> None:
    shape = bundle.manifest.shape
    for name in ("layers", "hidden_size", "heads", "kv_heads", "head_size", "vocab_size"):
        ours, theirs = getattr(shape, name), getattr(spec, name)
        if name == "head_size" and bundle.manifest.format == "onnx":
            theirs = padded_size(theirs)
        if ours != theirs:
            raise RequestError(
                f"{bundle.path} is of another model: its {name} is {ours:,}, the"
                f" checkpoint's {theirs:,}.",
                hint="Give the checkpoint that it was exported from.",
            )


def summary(found: Divergence, text: EvaluationText, *, weights_only: bool) -> Quality:
    """Four digits of each: the last ones depend on the number of threads, and bundles are
    reproducible."""
    several = len(found.kl) > 1
    return Quality(
        tokens=len(found.kl),
        text_name=text.name,
        text_sha256=text.sha256,
        kl_mean=_round(found.kl.mean()),
        kl_median=_round(np.median(found.kl)),
        kl_p99=_round(np.quantile(found.kl, 0.99)),
        top1_agreement=round(float(found.same_top1.mean()), 4),
        perplexity=_round(found.candidate_perplexity),
        checkpoint_perplexity=_round(found.reference_perplexity),
        perplexity_error=_round(found.candidate_perplexity_error) if several else None,
        checkpoint_perplexity_error=_round(found.reference_perplexity_error) if several else None,
        weights_only=weights_only,
    )


def _round(value: float | np.floating) -> float:
    return float(f"{value:.4g}")
