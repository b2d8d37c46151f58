"""Make the flatbuffer of a `.tflite`: graphs, signatures, and where the weights lie behind it.

Weights are not in the flatbuffer, which ends at 2 GiB: its buffers have an offset into the file and
a size. Schema: LiteRT's schema.fbs, by the objects that the package `ai_edge_litert` has of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

Operator = schema.BuiltinOperator
Types = schema.TensorType
Options = schema.BuiltinOptions

IDENTIFIER = b"TFL3"
VERSION = 3
_TYPES: dict[str, int] = {
    "float32": Types.FLOAT32,
    "float16": Types.FLOAT16,
    "int32": Types.INT32,
    "int8": Types.INT8,
    "int4": Types.INT4,
}
# Of an operator in general, where the first version does not take what is given to it here.
_OPERATOR_VERSIONS = {Operator.FULLY_CONNECTED: 12}


@dataclass(frozen=True)
class WeightPlace:
    """Where a weight lies.

    Attributes:
        shape: of the tensor.
        dtype: a key of `_TYPES`.
        offset, size: bytes, from the start of the file.
        scales: of rows, float32 [rows]; None where there are none, or they are a tensor.
        block_scales: the name of the tensor of scales of blocks.
        block: how many weights of a row share one of them.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    size: int
    scales: npt.NDArray[np.float32] | None = None
    block_scales: str | None = None
    block: int = 0


class ModelBuilder:
    """A model of several graphs that share weights.

    Args:
        weights: by name; a graph names those that it reads.
    """

    def __init__(self, weights: Mapping[str, WeightPlace], description: str) -> None:
        self._weights = weights
        self._model = schema.ModelT()
        self._model.version = VERSION
        self._model.description = description
        # The first buffer is that of all tensors without data.
        self._model.buffers = [schema.BufferT()]
        self._model.operatorCodes = []
        self._model.subgraphs = []
        self._model.signatureDefs = []
        self._codes: dict[int, int] = {}
        self._buffers: dict[str, int] = {}

    def graph(self, name: str) -> SignatureBuilder:
        """Begin a graph, which is the signature of that name."""
        subgraph = schema.SubGraphT()
        subgraph.name = name
        subgraph.tensors, subgraph.operators = [], []
        subgraph.inputs, subgraph.outputs = [], []
        self._model.subgraphs.append(subgraph)
        return SignatureBuilder(self, subgraph)

    def place(self, name: str) -> WeightPlace:
        """Where a weight lies."""
        return self._weights[name]

    def operator_code(self, operator: int) -> int:
        """The index of an operator."""
        if operator not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = operator
            # 127 stands for the operators that came after the field was made.
            code.deprecatedBuiltinCode = min(operator, 127)
            code.version = _OPERATOR_VERSIONS.get(operator, 1)
            self._codes[operator] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(code)
        return self._codes[operator]

    def weight_buffer(self, name: str) -> int:
        """The index of the buffer of a weight."""
        place = self._weights[name]
        return self._buffer(f"weight {name}", offset=place.offset, size=place.size)

    def constant_buffer(self, data: bytes) -> int:
        """The index of a buffer with a few bytes of its own."""
        return self._buffer(f"constant {data.hex()}", data=np.frombuffer(data, np.uint8))

    def sign(self, name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Make the latest graph a signature, given its tensors by name."""
        signature = schema.SignatureDefT()
        signature.signatureKey = name
        signature.subgraphIndex = len(self._model.subgraphs) - 1
        signature.inputs = [_tensor_map(*item) for item in inputs.items()]
        signature.outputs = [_tensor_map(*item) for item in outputs.items()]
        self._model.signatureDefs.append(signature)

    def to_bytes(self) -> bytes:
        """The flatbuffer. Models that differ in offsets and scales only are of one length."""
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _buffer(self, key: str, **fields: Any) -> int:
        if key not in self._buffers:
            self._buffers[key] = len(self._model.buffers)
            self._model.buffers.append(schema.BufferT(**fields))
        return self._buffers[key]


class SignatureBuilder:
    """One graph: each method adds a node and gives the index of its output."""

    def __init__(self, model: ModelBuilder, subgraph: Any) -> None:
        self._model = model
        self._graph = subgraph
        self._named: dict[str, int] = {}
        self._inputs: dict[str, int] = {}

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> int:
        """An input of the graph."""
        index = self._tensor(shape, dtype, name=name)
        self._graph.inputs.append(index)
        self._inputs[name] = index
        return index

    def finish(self, outputs: Mapping[str, int]) -> None:
        """End the graph with its outputs."""
        self._graph.outputs = list(outputs.values())
        self._model.sign(self._graph.name, self._inputs, outputs)

    def shape(self, tensor: int) -> list[int]:
        """The shape of a tensor."""
        return list(self._graph.tensors[tensor].shape)

    def weight(self, name: str) -> int:
        """A weight that lies in the file."""
        if name not in self._named:
            place = self._model.place(name)
            buffer = self._model.weight_buffer(name)
            index = self._tensor(place.shape, place.dtype, buffer, name)
            self._graph.tensors[index].quantization = self._quantization(place)
            self._named[name] = index
        return self._named[name]

    def constant(self, values: npt.NDArray[Any]) -> int:
        """A small constant, in the flatbuffer itself."""
        name = f"{values.dtype} {list(values.shape)} {values.tobytes().hex()}"
        if name not in self._named:
            buffer = self._model.constant_buffer(values.tobytes())
            index = self._tensor(values.shape, values.dtype.name, buffer)
            self._named[name] = index
        return self._named[name]

    def node(
        self,
        operator: int,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        dtype: str = "float32",
        options: Any = None,
    ) -> int:
        """Any node. `options` is an object of the schema, such as `AddOptionsT`."""
        node = schema.OperatorT()
        node.opcodeIndex = self._model.operator_code(operator)
        node.inputs = list(inputs)
        output = self._tensor(shape, dtype)
        node.outputs = [output]
        if options is not None:
            node.builtinOptionsType = getattr(Options, type(options).__name__[:-1])
            node.builtinOptions = options
        self._graph.operators.append(node)
        return output

    def add(self, a: int, b: int) -> int:
        return self._elementwise(Operator.ADD, a, b, schema.AddOptionsT())

    def subtract(self, a: int, b: int) -> int:
        return self._elementwise(Operator.SUB, a, b, schema.SubOptionsT())

    def multiply(self, a: int, b: int) -> int:
        return self._elementwise(Operator.MUL, a, b, schema.MulOptionsT())

    def scaled(self, x: int, factor: float) -> int:
        """x times a number."""
        return self.multiply(x, self.constant(np.array([factor], np.float32)))

    def clipped(self, x: int, low: int, high: int) -> int:
        """int32, kept within [low, high]."""
        at_least = self.constant(np.array([low], np.int32))
        at_most = self.constant(np.array([high], np.int32))
        raised = self._elementwise(Operator.MAXIMUM, x, at_least, schema.MaximumMinimumOptionsT())
        return self._elementwise(Operator.MINIMUM, raised, at_most, schema.MaximumMinimumOptionsT())

    def to_float(self, x: int) -> int:
        """int32 as float32."""
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = Types.INT32, Types.FLOAT32
        return self.node(Operator.CAST, [x], self.shape(x), options=options)

    def reshape(self, x: int, shape: Sequence[int]) -> int:
        if self.shape(x) == list(shape):
            return x
        options = schema.ReshapeOptionsT()
        options.newShape = list(shape)
        inputs = [x, self.constant(np.array(shape, np.int32))]
        return self.node(Operator.RESHAPE, inputs, shape, dtype=self._dtype(x), options=options)

    def transpose(self, x: int, order: Sequence[int]) -> int:
        shape = [self.shape(x)[axis] for axis in order]
        inputs = [x, self.constant(np.array(order, np.int32))]
        return self.node(Operator.TRANSPOSE, inputs, shape, options=schema.TransposeOptionsT())

    def slice_last(self, x: int, start: int, stop: int) -> int:
        """x[..., start:stop]."""
        shape = self.shape(x)
        begin = [0] * (len(shape) - 1) + [start]
        size = [*shape[:-1], stop - start]
        inputs = [x, *(self.constant(np.array(part, np.int32)) for part in (begin, size))]
        return self.node(
            Operator.SLICE, inputs, size, dtype=self._dtype(x), options=schema.SliceOptionsT()
        )

    def concatenate_last(self, parts: Sequence[int]) -> int:
        """Along the last axis."""
        options = schema.ConcatenationOptionsT()
        options.axis = len(self.shape(parts[0])) - 1
        shape = [*self.shape(parts[0])[:-1], sum(self.shape(part)[-1] for part in parts)]
        return self.node(
            Operator.CONCATENATION, parts, shape, dtype=self._dtype(parts[0]), options=options
        )

    def gather_rows(self, table: int, rows: int) -> int:
        """table[rows], by GATHER."""
        shape = [*self.shape(rows), *self.shape(table)[1:]]
        return self.node(Operator.GATHER, [table, rows], shape, options=schema.GatherOptionsT())

    def embedding(self, table: int, ids: int) -> int:
        """Rows of a table that may be quantized, float32 [n, columns]."""
        shape = [*self.shape(ids), self.shape(table)[1]]
        return self.node(Operator.EMBEDDING_LOOKUP, [ids, table], shape)

    def update_cache(self, cache: int, new: int, start: int) -> int:
        """The cache with `new` written at `start`, int32 [rank of the cache]."""
        inputs = [cache, new, start]
        return self.node(Operator.DYNAMIC_UPDATE_SLICE, inputs, self.shape(cache))

    def linear(self, x: int, weight: int, bias: int | None) -> int:
        """x [n, columns] times the transposed weight [rows, columns], plus the bias."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        shape = [*self.shape(x)[:-1], self.shape(weight)[0]]
        inputs = [x, weight, -1 if bias is None else bias]
        return self.node(Operator.FULLY_CONNECTED, inputs, shape, options=options)

    def matmul(self, a: int, b: int, *, transposed: bool = False) -> int:
        """a times b, or times b transposed, over all leading axes."""
        options = schema.BatchMatMulOptionsT()
        options.adjY = transposed
        columns = self.shape(b)[-2 if transposed else -1]
        shape = [*self.shape(a)[:-1], columns]
        return self.node(Operator.BATCH_MATMUL, [a, b], shape, options=options)

    def softmax(self, x: int) -> int:
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self.node(Operator.SOFTMAX, [x], self.shape(x), options=options)

    def unary(self, operator: int, x: int) -> int:
        """An operator without options: TANH, LOGISTIC, RSQRT."""
        return self.node(operator, [x], self.shape(x))

    def gelu_tanh(self, x: int) -> int:
        options = schema.GeluOptionsT()
        options.approximate = True
        return self.node(Operator.GELU, [x], self.shape(x), options=options)

    def rms_norm(self, x: int, gain: int, epsilon: float) -> int:
        """x / sqrt(mean(x * x) + epsilon) * gain, over the last axis."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        shape = [*self.shape(x)[:-1], 1]
        axis = self.constant(np.array([len(shape) - 1], np.int32))
        squares = self.multiply(x, x)
        mean = self.node(Operator.MEAN, [squares, axis], shape, options=options)
        shifted = self.add(mean, self.constant(np.array([epsilon], np.float32)))
        return self.multiply(self.multiply(x, self.unary(Operator.RSQRT, shifted)), gain)

    def capped(self, x: int, cap: float | None) -> int:
        """cap * tanh(x / cap); None = x."""
        if cap is None:
            return x
        return self.scaled(self.unary(Operator.TANH, self.scaled(x, 1 / cap)), cap)

    def _elementwise(self, operator: int, a: int, b: int, options: Any) -> int:
        shape = np.broadcast_shapes(tuple(self.shape(a)), tuple(self.shape(b)))
        return self.node(operator, [a, b], shape, dtype=self._dtype(a), options=options)

    def _dtype(self, tensor: int) -> str:
        kind = self._graph.tensors[tensor].type
        return next(name for name, value in _TYPES.items() if value == kind)

    def _tensor(
        self, shape: Sequence[int], dtype: str, buffer: int = 0, name: str | None = None
    ) -> int:
        index = len(self._graph.tensors)
        tensor = schema.TensorT()
        tensor.shape = [int(size) for size in shape]
        tensor.type = _TYPES[dtype]
        tensor.buffer = buffer
        tensor.name = name or f"t{index}"
        tensor.hasRank = True
        self._graph.tensors.append(tensor)
        return index

    def _quantization(self, place: WeightPlace) -> Any:
        if place.scales is None and place.block_scales is None:
            return None
        parameters = schema.QuantizationParametersT()
        parameters.quantizedDimension = 0
        if place.scales is not None:
            parameters.scale = place.scales
            parameters.zeroPoint = np.zeros(len(place.scales), np.int64)
            return parameters
        details = schema.BlockwiseQuantizationT()
        details.scales = self.weight(str(place.block_scales))
        details.zeroPoints = -1
        details.blockSize = place.block
        parameters.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        parameters.details = details
        return parameters


def _tensor_map(name: str, tensor: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def stored_weights(flatbuffer: npt.NDArray[np.uint8]) -> dict[str, WeightPlace]:
    """The weights that a model's flatbuffer names, and where they lie.

    Raises:
        ValueError: it is no such flatbuffer.
    """
    model = schema.ModelT.InitFromPackedBuf(flatbuffer.data, 0)
    names = {value: name for name, value in _TYPES.items()}
    found: dict[str, WeightPlace] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            buffer = model.buffers[tensor.buffer]
            if not buffer.offset:
                continue
            parameters = tensor.quantization
            details = None if parameters is None else parameters.details
            rows = None if parameters is None else parameters.scale
            found[tensor.name.decode()] = WeightPlace(
                tuple(int(size) for size in tensor.shape),
                names[tensor.type],
                buffer.offset,
                buffer.size,
                None if rows is None else np.asarray(rows, np.float32),
                None if details is None else graph.tensors[details.scales].name.decode(),
                0 if details is None else details.blockSize,
            )
    return found
