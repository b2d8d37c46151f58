"""Build a LiteRT bundle's model from a decoder that a family file describes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
from pathlib import Path

from edgesdk_quantize.divergence import Divergence

import edgesdk
from edgesdk.bundle.graph_io import ropes
from edgesdk.bundle.manifest import Quantization, StaticShape
from edgesdk.bundle.rope import switch_of
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import RequestError
from edgesdk_export.built_model import BuiltModel, StepProgress
from edgesdk_export.litert.scheme import TfliteScheme
from edgesdk_export.litert.stored_decoder import stored_decoder
from edgesdk_export.litert.writer import write_tflite
from edgesdk_export.onnx.build import shape_of
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise import compare
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint
from edgesdk_export.selftest.litert_logits import litert_logits
from edgesdk_export.selftest.weight_noise import checkpoint_logits
from edgesdk_export.weights import Decoder

MODEL_FILE = "model.tflite"
_DEFAULT_WINDOW = 1024
_DEFAULT_PREFILL, _MAX_PREFILL = 128, 256


def build_litert(
    decoder: Decoder,
    folder: Path,
    scheme: TfliteScheme,
    progress: ExportProgress,
    *,
    prefill: int | None,
    window: int | None,
) -> BuiltModel:
    """Write the `.tflite` of a decoder into `folder`.

    Args:
        prefill: tokens of a prompt that are computed at a time, a power of two; None = 128.
        window: tokens that a conversation may have; None = 1024, or what the model can.

    Raises:
        RequestError: the model cannot have such a window, or a number is out of range.
        ExportError: a weight cannot be stored.
    """
    context = _context(decoder.spec, window)
    spec = dataclasses.replace(decoder.spec, context_length=context)
    # Prompts are cut at multiples of its tokens, so the last call needs places for all of them.
    tokens = prefill or _DEFAULT_PREFILL
    if tokens & (tokens - 1) or not 2 <= tokens <= _MAX_PREFILL:
        raise RequestError(
            f"A prefill of {tokens} tokens at a time is not a power of two from 2 to"
            f" {_MAX_PREFILL}.",
            hint="Choose --prefill 64, for instance.",
        )
    static = StaticShape(
        prefill_tokens=tokens,
        window=-(-context // tokens) * tokens,
        logits_rows=tokens,
        dtype="float32",
    )
    path = folder / MODEL_FILE
    progress.stage(f"Writing {scheme.linear.name} layers", spec.layers)
    stored_bits = write_tflite(
        Decoder(spec, decoder.weights), path, scheme, static, progress.advance
    )

    def measure(windows: Windows, steps: StepProgress) -> Divergence:
        candidate = LayerwiseCheckpoint(stored_decoder(path, spec))
        return compare(LayerwiseCheckpoint(decoder), candidate, windows, progress=steps)

    return BuiltModel(
        shape=shape_of(spec),
        static=static,
        # Through JSON, so that what is stored equals what is read back (lists, not tuples).
        spec=json.loads(json.dumps(dataclasses.asdict(spec))),
        model_file=MODEL_FILE,
        quantization=Quantization(
            weights=scheme.linear.name,
            head=scheme.embedding.name,
            method=scheme.method,
            bits_per_weight=round(stored_bits, 3),
        ),
        exporter=f"edgesdk {edgesdk.__version__}",
        versions={"ai-edge-litert": importlib.metadata.version("ai-edge-litert")},
        measure=measure,
        run=functools.partial(litert_logits, path),
        reference=functools.partial(checkpoint_logits, decoder),
    )


def _context(spec: DecoderSpec, window: int | None) -> int:
    """Tokens that a conversation may have."""
    switches = [switch_of(rope, spec.context_length) for rope in ropes(spec).values()]
    switch = min((each for each in switches if each is not None), default=None)
    if window is None:
        return min(_DEFAULT_WINDOW, spec.context_length, switch or spec.context_length)
    if window > spec.context_length:
        raise RequestError(
            f"A window of {window} tokens is longer than the model's context of"
            f" {spec.context_length}.",
            hint=f"Choose --window {spec.context_length} or less.",
        )
    if switch is not None and window > switch:
        # Keys that are in the cache have been turned by the factors of short texts.
        raise RequestError(
            f"A window of {window} tokens is too long: this model turns positions by other"
            f" factors in texts of more than {switch} tokens, and graphs of fixed shapes have one"
            " table of them.",
            hint=f"Choose --window {switch} or less.",
        )
    return window
