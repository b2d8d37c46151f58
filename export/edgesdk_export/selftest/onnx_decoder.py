"""Run a whole ONNX decoder as engines run it, over shared KV buffers, at once or piece by piece.

A session over the whole file lays all of its weights out anew in memory, which for a large model
is more than the export itself takes. So the graph is cut between any two nodes, and each piece goes
to onnxruntime as it stands, with its weights mapped.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from edgesdk.bundle import graph_io
from edgesdk.bundle.graph_io import INPUT_IDS, LOGITS, LOGITS_FROM, SEQLENS_K, TOTAL_SEQUENCE_LENGTH
from edgesdk.engines.devices import HOST_PROVIDER

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class SharedCacheDecoder:
    """Called with ids int64 [n] and the position of the first; gives logits float32 [n, vocab].

    Args:
        capacity: how many positions the KV buffers have.
        options: of the session; None = onnxruntime's own.
    """

    def __init__(
        self,
        model_path: Path,
        capacity: int,
        options: onnxruntime.SessionOptions | None = None,
    ) -> None:
        options = options or onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(model_path), options, providers=[HOST_PROVIDER]
        )
        self._buffers = {
            node.name: onnxruntime.OrtValue.ortvalue_from_numpy(
                np.zeros((1, node.shape[1], capacity, node.shape[3]), np.float32)
            )
            for node in self._session.get_inputs()
            if node.name.startswith("past_key_values.")
        }

    def __call__(self, ids: Ids, start: int) -> Float32:
        total = start + len(ids)
        binding = self._session.io_binding()
        binding.bind_cpu_input(INPUT_IDS, ids[None])
        binding.bind_cpu_input(LOGITS_FROM, np.array([0], np.int64))
        binding.bind_cpu_input(SEQLENS_K, np.array([total - 1], np.int32))
        binding.bind_cpu_input(TOTAL_SEQUENCE_LENGTH, np.array(total, np.int32))
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), buffer)
        binding.bind_output(LOGITS)
        self._session.run_with_iobinding(binding)
        logits: Float32 = binding.get_outputs()[-1].numpy()[0]
        return logits


_PIECE_BYTES = 256 * 2**20
_FOLDER = "session.model_external_initializers_file_folder_path"

Values = dict[str, npt.NDArray[Any]]


def piecewise_logits(model_path: Path, ids: Ids, borders: list[int]) -> Float32:
    """Logits float32 [n, vocab] of tokens int64 [n], given in calls of ids[borders[i]:
    borders[i + 1]] that continue one KV cache. Each piece makes all of its calls in turn."""
    model = onnx.load(model_path, load_external_data=False)
    calls = [_inputs(model.graph, ids, a, b) for a, b in itertools.pairwise(borders)]
    pasts = {
        present: past
        for layer in range(_layers(model.graph))
        for past, present in zip(
            graph_io.past_names(layer), graph_io.present_names(layer), strict=True
        )
    }
    for piece in _pieces(model, calls[0]):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry(_FOLDER, str(model_path.parent))
        session = onnxruntime.InferenceSession(
            piece.SerializeToString(), options, providers=[HOST_PROVIDER]
        )
        wanted = [port.name for port in session.get_outputs()]
        for index, values in enumerate(calls):
            feeds = {port.name: values[port.name] for port in session.get_inputs()}
            values.update(zip(wanted, session.run(wanted, feeds), strict=True))
            for name in pasts.keys() & set(wanted):
                cache = values.pop(name)
                if index + 1 < len(calls):
                    calls[index + 1][pasts[name]] = cache
    return np.concatenate([values[graph_io.LOGITS][0] for values in calls])


def _pieces(model: onnx.ModelProto, values: Values) -> Iterator[onnx.ModelProto]:
    """The graph in order; `values` must have what a piece takes in before it is drawn."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    last_use = {name: i for i, node in enumerate(nodes) for name in node.input}
    last_use.update({port.name: len(nodes) for port in graph.output})
    start = 0
    while start < len(nodes):
        stop, size = start, 0
        while stop < len(nodes) and (size < _PIECE_BYTES or stop == start):
            size += sum(_bytes_of(weights[name]) for name in nodes[stop].input if name in weights)
            stop += 1
        part = nodes[start:stop]
        made = [name for node in part for name in node.output if name]
        used = dict.fromkeys(name for node in part for name in node.input if name)
        taken = [name for name in used if name not in weights and name not in made]
        given = [name for name in made if last_use.get(name, -1) >= stop]
        yield onnx.helper.make_model(
            onnx.helper.make_graph(
                part,
                f"{graph.name} {start}:{stop}",
                [_port(name, values[name].dtype) for name in taken],
                [onnx.ValueInfoProto(name=name) for name in given],
                [weights[name] for name in used if name in weights],
            ),
            opset_imports=model.opset_import,
            ir_version=model.ir_version,
        )
        start = stop


def _inputs(graph: onnx.GraphProto, ids: Ids, start: int, stop: int) -> Values:
    values: Values = {
        graph_io.INPUT_IDS: ids[None, start:stop],
        graph_io.LOGITS_FROM: np.array([0], np.int64),
        graph_io.SEQLENS_K: np.array([stop - 1], np.int32),
        graph_io.TOTAL_SEQUENCE_LENGTH: np.array(stop, np.int32),
    }
    held = {tensor.name for tensor in graph.initializer}
    for port in graph.input:
        if port.name not in values and port.name not in held:
            _, heads, _, size = (dim.dim_value for dim in port.type.tensor_type.shape.dim)
            values[port.name] = np.zeros((1, heads, len(ids), size), np.float32)
    return values


def _layers(graph: onnx.GraphProto) -> int:
    return sum(1 for port in graph.input if port.name.startswith("past_key_values.")) // 2


def _bytes_of(tensor: onnx.TensorProto) -> int:
    lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
    return lengths[0] if lengths else int(tensor.ByteSize())


def _port(name: str, dtype: np.dtype[Any]) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return onnx.helper.make_tensor_value_info(name, kind, None)
