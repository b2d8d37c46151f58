"""Make parts of a decoder models of their own, for a pass that holds one layer at a time.

Each part is drawn by the same code as in the whole model, over either a checkpoint's weights
(`FloatTensors`) or the very bytes of a written model (`read_stored`).
A text goes through `embed_model`, every `layer_model`, and `head_model`:

    embed_model   input_ids int64 [batch, sequence]             -> hidden
    layer_model   hidden float32 [batch, sequence, hidden]      -> hidden
    tapped_layer_model  the same                                -> hidden, and inputs of matrices
    head_model    hidden                                        -> logits [batch, sequence, rows]

Every row of a batch is a whole text that begins at its first token; there is no KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from edgesdk.bundle.spec import DecoderSpec
from edgesdk.engines.devices import HOST_PROVIDER
from edgesdk_export.onnx.attention import lengths
from edgesdk_export.onnx.decoder_graph import embed, head, layer
from edgesdk_export.onnx.graph_builder import GraphBuilder, Weights
from edgesdk_export.onnx.operators import ResidualStream
from edgesdk_export.onnx.rope_tables import computed_tables
from edgesdk_export.onnx.stored_weights import FloatTensors, StoredTensors

Runner = Callable[[npt.NDArray[Any]], list[npt.NDArray[Any]]]

INPUT_IDS = "input_ids"
HIDDEN = "hidden"
HIDDEN_OUT = "hidden_out"
LOGITS = "logits"

_BATCH_SEQUENCE = ("batch", "sequence")
# Initializers smaller than this stay inside the graph, as shape inference may want their values.
_INLINE_BYTES = 1024


@dataclass(frozen=True)
class PartialModel:
    """A graph, and its weights beside it (numpy arrays: mapped files or memory, never copied)."""

    graph: bytes
    weights: Mapping[str, npt.NDArray[Any]]

    def session(
        self, options: onnxruntime.SessionOptions | None = None
    ) -> onnxruntime.InferenceSession:
        """An onnxruntime session on the CPU; `options` is written to, so give a new one."""
        options = options or onnxruntime.SessionOptions()
        options.add_external_initializers(
            list(self.weights),
            [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self.weights.values()],
        )
        return onnxruntime.InferenceSession(self.graph, options, providers=[HOST_PROVIDER])

    def runner(self, *, prepack: bool) -> Runner:
        """Called with the part's input; gives its outputs in order.

        Args:
            prepack: lay matrices out for speed. Without it float32 matrices go in with each call:
                onnxruntime copies its initializers, and would hold them twice while it does.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        part, fed = self, {}
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
            fed = {name: array for name, array in self.weights.items() if _is_matrix(name, array)}
            part = self._taking(fed)
        session = part.session(options)
        (name,) = (port.name for port in session.get_inputs() if port.name not in fed)
        return lambda values: session.run(None, {name: values, **fed})

    def _taking(self, fed: Mapping[str, npt.NDArray[Any]]) -> PartialModel:
        """The same with some weights as inputs of the graph."""
        model = onnx.load_model_from_string(self.graph)
        kept = [tensor for tensor in model.graph.initializer if tensor.name not in fed]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.input.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
            for name, array in fed.items()
        )
        rest = {name: array for name, array in self.weights.items() if name not in fed}
        return PartialModel(model.SerializeToString(), rest)


def _is_matrix(name: str, array: npt.NDArray[Any]) -> bool:
    return name.endswith(".weight") and array.ndim == 2 and array.dtype == np.float32


def embed_model(spec: DecoderSpec, weights: StoredTensors | FloatTensors) -> PartialModel:
    """Token ids to hidden states."""
    graph = GraphBuilder(weights)
    ids = graph.input(INPUT_IDS, ir.DataType.INT64, _BATCH_SEQUENCE)
    stream = embed(graph, spec, ids)
    graph.output(stream.residual, HIDDEN, ir.DataType.FLOAT, (*_BATCH_SEQUENCE, spec.hidden_size))
    return _part(graph, "embed")


def layer_model(spec: DecoderSpec, weights: Weights, index: int) -> PartialModel:
    """Hidden states before layer `index` to those after it."""
    return tapped_layer_model(spec, weights, index, ())


def tapped_layer_model(
    spec: DecoderSpec, weights: Weights, index: int, taps: Sequence[str]
) -> PartialModel:
    """A layer that also gives the inputs of the stored matrices `taps` ("qkv", "o", "gate", "down"
    and so on): after the hidden states, in order, float32 [batch, sequence, columns]."""
    graph = GraphBuilder(weights)
    shape = (*_BATCH_SEQUENCE, spec.hidden_size)
    hidden = graph.input(HIDDEN, ir.DataType.FLOAT, shape)
    one = graph.constant("one", [1], np.int32)
    batch = graph.op("Shape", "batch", [hidden], start=0, end=1)
    size = graph.op("Shape", "size", [hidden], start=1, end=2)
    tokens = graph.op("Cast", "tokens", [size], to=ir.DataType.INT32.value)
    last = graph.op("Expand", "last", [graph.op("Sub", "minus", [tokens, one]), batch])
    total = graph.op("Squeeze", "total", [tokens])
    tables = computed_tables(graph, spec, [index], total)
    shared = lengths(graph, spec, tables, hidden, last, total)
    stream, _, _ = layer(graph, spec, index, ResidualStream(hidden), shared, None)
    summed = graph.op("Add", "sum", [stream.residual, stream.branch])
    graph.output(summed, HIDDEN_OUT, ir.DataType.FLOAT, shape)
    for tap in taps:
        value = graph.input_of_matrix(f"layers.{index}.{tap}")
        graph.output(value, f"{tap}_input", ir.DataType.FLOAT, (*_BATCH_SEQUENCE, f"{tap}_columns"))
    return _part(graph, f"layer {index}")


def head_model(
    spec: DecoderSpec,
    weights: StoredTensors | FloatTensors,
    rows: tuple[int, int] | None = None,
) -> PartialModel:
    """Hidden states after the last layer to logits, of vocabulary rows [start, stop) only."""
    start, stop = rows or (0, spec.vocab_size)
    graph = GraphBuilder(_VocabularyRows(weights, "embed." if spec.tied else "head.", start, stop))
    hidden = graph.input(HIDDEN, ir.DataType.FLOAT, (*_BATCH_SEQUENCE, spec.hidden_size))
    logits, _ = head(graph, spec, ResidualStream(hidden), None)
    graph.output(logits, LOGITS, ir.DataType.FLOAT, (*_BATCH_SEQUENCE, stop - start))
    return _part(graph, f"head {start}:{stop}")


class _VocabularyRows:
    """Weights of which one matrix is cut to some of its rows."""

    def __init__(
        self, weights: StoredTensors | FloatTensors, matrix: str, start: int, stop: int
    ) -> None:
        self._weights = weights
        self._matrix = matrix
        self._start = start
        self._stop = stop

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> ir.TensorProtocol:
        if name.startswith(self._matrix):
            return self._weights.rows(name, self._start, self._stop)
        return self._weights[name]


def _part(graph: GraphBuilder, name: str) -> PartialModel:
    model = graph.model(name)
    weights: dict[str, npt.NDArray[Any]] = {}
    for key, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes < _INLINE_BYTES:
            value.const_value = ir.tensor(np.array(tensor.numpy()), name=key)
            continue
        weights[key] = tensor.numpy()
        # The file name is never opened: the session is given the weights themselves.
        value.const_value = ir.ExternalTensor(
            "weights",
            0,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=key,
        )
    return PartialModel(ir.to_proto(model).SerializeToString(), weights)
