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
from edgesdk_export.static_sizes import DEFAULT_PREFILL, static_shape
from edgesdk_export.weights import Decoder

MODEL_FILE = "model.tflite"


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
        prefill: tokens of a prompt that are computed at a time, a power of two; None = 128, or what
            the window has room for.
        window: tokens that a conversation may have; None = 1024, or what the model can.

    Raises:
        RequestError: the model cannot have such a window, or a number is out of range.
        ExportError: a weight cannot be stored.
    """
    sizes = _sizes(decoder.spec, prefill, window)
    spec = dataclasses.replace(decoder.spec, context_length=sizes.window)
    # Prompts are cut at multiples of its tokens, so the last call needs places for all of them.
    places = -(-sizes.window // sizes.prefill_tokens) * sizes.prefill_tokens
    static = sizes.model_copy(update={"window": places})
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


def _sizes(spec: DecoderSpec, prefill: int | None, window: int | None) -> StaticShape:
    """Tokens that a conversation may have, and that are computed at a time."""
    switches = [switch_of(rope, spec.context_length) for rope in ropes(spec).values()]
    context = min([spec.context_length, *(each for each in switches if each is not None)])
    if window is not None and context < window <= spec.context_length:
        # Keys that are in the cache have been turned by the factors of short texts.
        raise RequestError(
            f"A window of {window} tokens is too long: this model turns positions by other"
            f" factors in texts of more than {context} tokens, and graphs of fixed shapes have one"
            " table of them.",
            hint=f"Choose --window {context} or less.",
        )
    shorter = dataclasses.replace(spec, context_length=context)
    whole = 1 << (min(context, window or context).bit_length() - 1)
    tokens = min(DEFAULT_PREFILL, whole) if prefill is None else prefill
    return static_shape(shorter, prefill=tokens, window=window, dtype="float32")
