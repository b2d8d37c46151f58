"""Build a bundle's prefill and decode graphs from a decoder that a family file describes."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import onnx_ir as ir
from edgesdk_quantize.divergence import Divergence
from edgesdk_quantize.formats import FP32
from edgesdk_quantize.formats.qdq import Qdq

import edgesdk
from edgesdk.bundle import static_io
from edgesdk.bundle.manifest import Quantization, Role, StaticShape
from edgesdk.bundle.spec import DecoderSpec
from edgesdk.errors import RequestError
from edgesdk_export.built_model import BuiltModel, StepProgress
from edgesdk_export.calibration.calibrate import (
    CalibrationSettings,
    calibrate_decoder,
    chosen_windows,
)
from edgesdk_export.npu.activation_grids import activation_grids
from edgesdk_export.npu.static_graph import static_model
from edgesdk_export.npu.static_scheme import StaticScheme
from edgesdk_export.npu.static_weights import store_static
from edgesdk_export.onnx.build import shape_of
from edgesdk_export.onnx.graph_builder import Weights
from edgesdk_export.padded_heads import with_padded_heads
from edgesdk_export.progress import ExportProgress
from edgesdk_export.quality.evaluation_text import Windows
from edgesdk_export.quality.layerwise import compare_logits
from edgesdk_export.quality.layerwise_models import LayerwiseCheckpoint
from edgesdk_export.resume import ResumeState
from edgesdk_export.selftest.onnx_decoder import Float32, Ids
from edgesdk_export.selftest.static_logits import open_static_state, static_logits
from edgesdk_export.selftest.weight_noise import checkpoint_logits
from edgesdk_export.static_sizes import static_shape
from edgesdk_export.tokenizers import TextFiles
from edgesdk_export.weights import Decoder

DATA_FILE = "model.onnx.data"
GRAPH_FILES: dict[Role, str] = {"prefill": "prefill.onnx", "decode": "decode.onnx"}
# Of which the prefill graph gives logits: enough for a self-test that takes no time, and as good as
# one for an NPU, whose time goes into reading the weights.
_LOGITS_ROWS = 8


# By onnxruntime-qnn 2.7.0; tests/integration/test_qnn_traps.py shows it.
_MISCOMPILED = 16


def check_prefill(scheme: StaticScheme, prefill: int) -> None:
    """Raise RequestError for a size of prefill that is compiled to wrong numbers."""
    if prefill == _MISCOMPILED and scheme.quantizes_activations:
        raise RequestError(
            f"Qualcomm's compiler makes wrong numbers of quantized activations of {prefill} tokens"
            " at a time.",
            hint="Choose --prefill 32, for instance.",
        )


def build_static(
    decoder: Decoder,
    folder: Path,
    scheme: StaticScheme,
    progress: ExportProgress,
    *,
    prefill: int,
    window: int | None,
    text: TextFiles,
    calibration: CalibrationSettings | None = None,
    resume: ResumeState | None = None,
) -> BuiltModel:
    """Write both graphs of a decoder, and their one data file, into `folder`.

    Args:
        prefill, window: see `edgesdk_export.static_sizes.static_shape`.
        text, calibration, resume: see `edgesdk_export.onnx.build.build_onnx`. A scheme that
            quantizes activations needs a calibration, and takes its text alone.

    Raises:
        ExportError: a weight cannot be stored, or the calibration text is too short.
        RequestError: a size is out of range, or the calibration does not go with the scheme.
    """
    check_prefill(scheme, prefill)
    decoder = with_padded_heads(decoder)
    spec = decoder.spec
    shape = static_shape(
        spec,
        prefill=prefill,
        window=window,
        logits_rows=_LOGITS_ROWS,
        dtype="float32" if scheme.floats == FP32 else "float16",
    )
    source, quantizer, method = decoder, None, scheme.method
    grids: dict[str, ir.TensorProtocol] = {}
    bos = text.entry.bos_token_id if text.entry.add_bos else None
    if calibration is not None and scheme.quantizes_activations:
        text_name, windows = chosen_windows(
            decoder, calibration, text.tokenizer_json, bos, folder, resume, progress
        )
        progress.stage("Measuring activations", spec.layers)
        assert isinstance(scheme.linear, Qdq)
        grids = activation_grids(
            decoder, windows, scheme.linear, resume=resume, progress=progress.advance
        )
        method = f"{method}, activations calibrated on {text_name}"
    elif calibration is not None:
        calibrated = calibrate_decoder(
            decoder,
            scheme.blocks,
            calibration,
            tokenizer_json=text.tokenizer_json,
            bos=bos,
            work=folder,
            progress=progress,
            resume=resume,
        )
        source, quantizer, method = calibrated.decoder, calibrated.quantizer, calibrated.method
    progress.stage(f"Writing {scheme.name} layers", spec.layers)
    stored, bits_per_weight, source_blocks = store_static(
        source,
        folder / DATA_FILE,
        scheme,
        progress.advance,
        quantizer,
        None if resume is None else resume.journal(DATA_FILE),
    )
    stored = stored.with_others(grids)
    write_graphs(spec, stored, shape, folder)
    prefill_file, decode_file = (folder / name for name in GRAPH_FILES.values())

    def run(ids: Ids) -> Float32:
        graphs = prefill_file.read_bytes(), decode_file.read_bytes()
        return static_logits(open_static_state(*graphs, folder, spec, shape), ids)

    def measure(windows: Windows, steps: StepProgress) -> Divergence:
        # The same prefill graph, with logits of all its tokens.
        whole = shape.model_copy(update={"logits_rows": shape.prefill_tokens})
        model = static_model(spec, stored, whole, tokens=whole.prefill_tokens)
        graphs = ir.to_proto(model).SerializeToString(), decode_file.read_bytes()
        state = open_static_state(*graphs, folder, spec, whole)

        def candidate(ids: Ids) -> Float32:
            state.rewind(0)
            return state.extend(ids, logits="all")

        return compare_logits(LayerwiseCheckpoint(decoder), candidate, windows, progress=steps)

    return BuiltModel(
        shape=shape_of(spec).model_copy(
            update={"context_length": static_io.context_of(spec, shape.window)}
        ),
        # Through JSON, so that what is stored equals what is read back (lists, not tuples).
        spec=json.loads(json.dumps(dataclasses.asdict(spec))),
        model_file=GRAPH_FILES["prefill"],
        roles=GRAPH_FILES,
        static=shape,
        quantization=Quantization(
            weights=scheme.linear.name if quantizer is None else quantizer.formats,
            head=scheme.head.name,
            method=method,
            bits_per_weight=round(bits_per_weight, 3),
            source_blocks=source_blocks,
        ),
        exporter=f"edgesdk {edgesdk.__version__}",
        measure=measure,
        run=run,
        reference=functools.partial(checkpoint_logits, decoder),
    )


def write_graphs(spec: DecoderSpec, weights: Weights, shape: StaticShape, folder: Path) -> None:
    """Write both graphs over stored weights, whose data file is in `folder`."""
    for role, name in GRAPH_FILES.items():
        tokens = 1 if role == "decode" else shape.prefill_tokens
        ir.save(static_model(spec, weights, shape, tokens=tokens), folder / name)
