"""Write an encoder as an ONNX model with streamed external data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
from edgesdk_quantize.formats import BlockFormat, FloatFormat

from edgesdk.bundle.encoder_spec import EncoderSpec, encoder_shapes
from edgesdk.errors import ExportError
from edgesdk_export.onnx.encoder_graph import encoder_model
from edgesdk_export.onnx.external_data import ExternalDataWriter
from edgesdk_export.onnx.scheme import OnnxFormat, WeightScheme
from edgesdk_export.onnx.stored_weights import StoredTensors
from edgesdk_export.onnx.writer import DATA_FILE, MODEL_FILE, WeightStore, WrittenModel
from edgesdk_export.weights import Encoder

_FLOAT32 = WeightScheme.named("fp32").linear


def write_encoder(
    encoder: Encoder, folder: Path, scheme: WeightScheme, progress: Callable[[int], object]
) -> WrittenModel:
    """Write `model.onnx` and `model.onnx.data` into `folder`; `progress` is told of each layer.

    The layers' matrices and the token embedding are stored as the scheme says. Positions, token
    types and the head of scores stay float32: they are small.

    Raises:
        ExportError: a weight is NaN or infinite or does not fit the format, or no block of it
            divides the embedding.
    """
    spec = encoder.spec
    with ExternalDataWriter(folder / DATA_FILE) as data:
        store = WeightStore(encoder.weights, encoder_shapes(spec), data)
        for matrix, (parts, fmt) in _matrices(spec, scheme).items():
            store.matrix(matrix, parts, fmt)
            if matrix.endswith(".down"):
                progress(int(matrix.split(".")[1]) + 1)
        if not isinstance(_embedding_format(spec, scheme), FloatFormat):
            store.embedding_view()
        for name in encoder_shapes(spec):
            part = name.rpartition(".")[0]
            if part.endswith("norm"):
                store.vector(name, (name,))
    ir.save(encoder_model(spec, StoredTensors(store.tensors)), folder / MODEL_FILE)
    stored = sum(tensor.nbytes for name, tensor in store.tensors.items() if name != "embed.rows")
    loss = store.requantization_loss.entries()
    return WrittenModel(MODEL_FILE, stored * 8 / spec.parameters, scheme, loss)


def quantized_weights(spec: EncoderSpec) -> dict[str, bool]:
    """The canonical matrices that a scheme stores in its formats: whether it is the embedding."""
    layers = [name for name, shape in encoder_shapes(spec).items() if len(shape) > 1]
    found = {name: False for name in layers if name.startswith("layers.")}
    return {"embed.weight": True, **found}


def _embedding_format(spec: EncoderSpec, scheme: WeightScheme) -> OnnxFormat:
    fmt = scheme.embedding_for(tied=False, columns=spec.hidden_size)
    if isinstance(fmt, BlockFormat) and spec.hidden_size % fmt.block:
        raise ExportError(
            f"An embedding with a hidden size of {spec.hidden_size} cannot be quantized: no block"
            " of 16 or more divides it.",
            hint='Write embedding = "fp16" in the recipe, or choose fp16 weights.',
        )
    return fmt


def _matrices(
    spec: EncoderSpec, scheme: WeightScheme
) -> dict[str, tuple[tuple[str, ...], OnnxFormat]]:
    """Stored matrix -> the canonical ones whose rows it holds, and its format."""
    found: dict[str, tuple[tuple[str, ...], OnnxFormat]] = {}
    found["embed"] = (("embed",), _embedding_format(spec, scheme))
    if spec.position_rows:
        found["positions"] = (("positions",), _FLOAT32)
    if spec.token_types:
        found["token_types"] = (("token_types",), _FLOAT32)
    for index in range(spec.layers):
        at = f"layers.{index}."
        found[at + "qkv"] = ((at + "q", at + "k", at + "v"), scheme.linear)
        for part in ("o", *(("gate",) if spec.gated else ()), "up", "down"):
            found[at + part] = ((at + part,), scheme.linear)
    if spec.head is not None:
        for part in ("head.dense", "head.labels"):
            found[part] = ((part,), _FLOAT32)
    return found
