"""Draw a function of an ML Program, Core ML's own kind of graph (MIL).

The format is that of `MIL.proto` in coremltools; the operators, their inputs and what they compute
are in its reference of MIL ops. Every value has a fixed shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2

# The set of operators that came with iOS 18 and macOS 15, the first with states and 4-bit blocks.
OPSET = "CoreML8"
SPECIFICATION_VERSION = 9

FLOAT16: int = MIL_pb2.FLOAT16
INT32: int = MIL_pb2.INT32
_FEATURE_TYPES = {
    FLOAT16: FeatureTypes_pb2.ArrayFeatureType.FLOAT16,
    INT32: FeatureTypes_pb2.ArrayFeatureType.INT32,
}
_WEIGHT_PATH = "@model_path/weights/weight.bin"

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class MilValue:
    """A value in a function, by its name."""

    name: str
    shape: Shape
    dtype: int = FLOAT16


@dataclass(frozen=True)
class Blob:
    """A constant in the weight file.

    Attributes:
        dtype: of `MIL_pb2.DataType`.
        offset: where its header begins in the file, in bytes.
    """

    dtype: int
    shape: Shape
    offset: int


# What an operator takes: a value, several, or a constant.
Operand: TypeAlias = (
    "MilValue | Sequence[MilValue] | npt.NDArray[Any] | bool | int | float | str | np.generic"
)


class MilFunction:
    """Collects the inputs, states, operations and outputs of one function, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.proto = MIL_pb2.Function(opset=OPSET)
        self.description = Model_pb2.FunctionDescription(name=name)
        self._block = self.proto.block_specializations[OPSET]
        self._names: set[str] = set()
        self._constants: dict[tuple[str, Shape, bytes], MilValue] = {}

    def input(self, name: str, shape: Shape, dtype: int = FLOAT16) -> MilValue:
        """Declare an input."""
        self.proto.inputs.add(name=self._fresh(name), type=_tensor_type(shape, dtype))
        _describe(self.description.input.add(name=name).type.multiArrayType, shape, dtype)
        return MilValue(name, shape, dtype)

    def state(self, name: str, shape: Shape) -> MilValue:
        """Declare a state: numbers that are kept from one call to the next."""
        added = self.proto.inputs.add(name=self._fresh(name))
        added.type.stateType.wrappedType.CopyFrom(_tensor_type(shape, FLOAT16))
        feature = self.description.state.add(name=name)
        _describe(feature.type.stateType.arrayType, shape, FLOAT16)
        return MilValue(name, shape)

    def output(self, value: MilValue) -> None:
        """Make a value an output, under its name."""
        self._block.outputs.append(value.name)
        feature = self.description.output.add(name=value.name)
        _describe(feature.type.multiArrayType, value.shape, value.dtype)

    def op(self, kind: str, name: str, shape: Shape, /, **operands: Operand) -> MilValue:
        """Add an operation with one output, of the type of its first operand."""
        first = next(iter(operands.values()))
        value = first[0] if isinstance(first, list | tuple) else first
        dtype = value.dtype if isinstance(value, MilValue) else FLOAT16
        return self.ops(kind, [MilValue(name, shape, dtype)], **operands)[0]

    def ops(self, kind: str, outputs: Sequence[MilValue], /, **operands: Operand) -> list[MilValue]:
        """Add an operation with these outputs."""
        # Constants stand before what reads them.
        inputs = {key: self._argument(operand) for key, operand in operands.items()}
        named = [MilValue(self._fresh(out.name), out.shape, out.dtype) for out in outputs]
        added = self._block.operations.add(type=kind, inputs=inputs)
        for out in named:
            added.outputs.add(name=out.name, type=_tensor_type(out.shape, out.dtype))
        added.attributes["name"].CopyFrom(_immediate(named[0].name))
        return named

    def write_state(self, state: MilValue, value: MilValue) -> MilValue:
        """Set a state, and return what it holds then."""
        name = self._fresh(f"{value.name}_write")
        operation = self._block.operations.add(type="write_state")
        operation.inputs["input"].arguments.add(name=state.name)
        operation.inputs["data"].arguments.add(name=value.name)
        operation.attributes["name"].CopyFrom(_immediate(name))
        return self.op("read_state", f"{value.name}_read", state.shape, input=state)

    def weight(self, name: str, blob: Blob) -> MilValue:
        """A constant of the weight file."""
        return self._add_constant(name, blob.shape, blob.dtype, _in_file(blob))

    def blocks(self, name: str, data: Blob, scales: Blob, offsets: Blob | None) -> MilValue:
        """A matrix in blocks of the weight file: scale * (data - offset)."""
        fresh = self._fresh(name)
        operation = self._block.operations.add(type="constexpr_blockwise_shift_scale")
        for key, blob in (("data", data), ("scale", scales), ("offset", offsets)):
            if blob is not None:
                operation.inputs[key].arguments.add(value=_in_file(blob))
        operation.outputs.add(name=fresh, type=_tensor_type(data.shape, FLOAT16))
        operation.attributes["name"].CopyFrom(_immediate(fresh))
        return MilValue(fresh, data.shape)

    def _argument(self, operand: Operand) -> MIL_pb2.Argument:
        if isinstance(operand, MilValue):
            parts: Sequence[MilValue] = [operand]
        elif isinstance(operand, list | tuple):
            parts = operand
        else:
            parts = [self.constant(operand)]
        return MIL_pb2.Argument(
            arguments=[MIL_pb2.Argument.Binding(name=part.name) for part in parts]
        )

    def constant(self, value: Any) -> MilValue:
        """A constant of a few numbers or a text, made once."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            proto = _immediate(value)
            name = f"constant_{len(self._constants)}"
            dtype = proto.type.tensorType.dataType
            self._constants[key] = self._add_constant(name, array.shape, dtype, proto)
        return self._constants[key]

    def _add_constant(self, name: str, shape: Shape, dtype: int, value: MIL_pb2.Value) -> MilValue:
        fresh = self._fresh(name)
        operation = self._block.operations.add(type="const")
        operation.outputs.add(name=fresh, type=_tensor_type(shape, dtype))
        operation.attributes["name"].CopyFrom(_immediate(fresh))
        operation.attributes["val"].CopyFrom(value)
        return MilValue(fresh, shape, dtype)

    def _fresh(self, name: str) -> str:
        """The name, as MIL allows it; each may be given once."""
        name = name.replace(".", "_").replace("/", "_")
        assert name not in self._names, name
        self._names.add(name)
        return name


def program(functions: Sequence[MilFunction], default: str) -> Model_pb2.Model:
    """The model with these functions.

    Args:
        default: the function that is called where a caller names none.
    """
    model = Model_pb2.Model(specificationVersion=SPECIFICATION_VERSION)
    model.description.defaultFunctionName = default
    model.mlProgram.version = 1
    for function in functions:
        model.description.functions.append(function.description)
        model.mlProgram.functions[function.name].CopyFrom(function.proto)
    return model


def _tensor_type(shape: Shape, dtype: int) -> MIL_pb2.ValueType:
    found = MIL_pb2.ValueType()
    found.tensorType.dataType = dtype
    found.tensorType.rank = len(shape)
    for size in shape:
        found.tensorType.dimensions.add().constant.size = size
    return found


def _describe(feature: Any, shape: Shape, dtype: int) -> None:
    feature.shape.extend(shape)
    feature.dataType = _FEATURE_TYPES[dtype]


def _in_file(blob: Blob) -> MIL_pb2.Value:
    place = MIL_pb2.Value.BlobFileValue(fileName=_WEIGHT_PATH, offset=blob.offset)
    return MIL_pb2.Value(type=_tensor_type(blob.shape, blob.dtype), blobFileValue=place)


def _immediate(value: object) -> MIL_pb2.Value:
    """A constant that stands in the program itself: float16, int32, bool or a text."""
    array = np.asarray(value)
    tensor = MIL_pb2.TensorValue()
    if array.dtype.kind == "U":
        dtype = MIL_pb2.STRING
        tensor.strings.values.append(str(value))
    elif array.dtype.kind == "b":
        dtype = MIL_pb2.BOOL
        tensor.bools.values.extend(array.ravel().tolist())
    elif array.dtype.kind == "i":
        dtype = INT32
        tensor.ints.values.extend(array.ravel().tolist())
    else:
        dtype = FLOAT16
        tensor.bytes.values = array.astype(np.float16).tobytes()
    immediate = MIL_pb2.Value(type=_tensor_type(array.shape, dtype))
    immediate.immediateValue.tensor.CopyFrom(tensor)
    return immediate
