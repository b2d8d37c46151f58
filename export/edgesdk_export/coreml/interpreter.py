"""Compute the functions of a Core ML package in numpy, from its files alone.

Core ML runs on Apple's systems only. This reads the program and the weight file that it would
read, and does what the reference of MIL ops in coremltools says of the operators that
`decoder_function` uses, so that a package is tested wherever it is made. It knows no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from coremltools.libmilstoragepython import _BlobStorageReader
from coremltools.proto import MIL_pb2, Model_pb2

Array = npt.NDArray[Any]
States = dict[str, Array]

_NUMBERS = {
    MIL_pb2.BOOL: np.bool_,
    MIL_pb2.FLOAT16: np.float16,
    MIL_pb2.INT32: np.int32,
    MIL_pb2.INT4: np.int8,
    MIL_pb2.INT8: np.int8,
    MIL_pb2.UINT4: np.uint8,
    MIL_pb2.UINT8: np.uint8,
}


class PackageInterpreter:
    """A package that is read, and computed.

    Args:
        path: the `.mlpackage` folder.
        rounded: whether inputs, states, outputs and each operator's result are float16, as their
            types say. Else they are float32, and an error that is left has another cause.
        keep_weights: whether constants are read once, and not again for each call.
    """

    def __init__(self, path: Path, *, rounded: bool = True, keep_weights: bool = False) -> None:
        data = path / "Data" / "com.apple.CoreML"
        model = Model_pb2.Model.FromString((data / "model.mlmodel").read_bytes())
        self.description = model.description
        self._functions = model.mlProgram.functions
        self._reader = _BlobStorageReader(str(data / "weights" / "weight.bin"))
        self.floats: np.dtype[Any] = np.dtype(np.float16 if rounded else np.float32)
        self._kept: dict[tuple[str, str], Array] | None = {} if keep_weights else None

    def operations(self, function: str) -> list[str]:
        """The operators of a function, in order."""
        proto = self._functions[function]
        return [each.type for each in proto.block_specializations[proto.opset].operations]

    def new_states(self, function: str) -> States:
        """The states of a function, all zeros."""
        return {
            each.name: np.zeros(_shape(each.type.stateType.wrappedType), self.floats)
            for each in self._functions[function].inputs
            if each.type.HasField("stateType")
        }

    def run(self, function: str, inputs: Mapping[str, Array], states: States) -> dict[str, Array]:
        """The outputs of a function; `states` holds afterwards what it wrote.

        Raises:
            ValueError: an input is missing, unknown, or of another shape or type; or an
                operator's result is.
        """
        proto = self._functions[function]
        block = proto.block_specializations[proto.opset]
        values: dict[str, Array] = {}
        for each in proto.inputs:
            if each.type.HasField("stateType"):
                continue
            self._check(f"The input {each.name}", inputs[each.name], each.type)
            values[each.name] = _widened(inputs[each.name])
        unknown = inputs.keys() - values.keys()
        if unknown:
            raise ValueError(f"{function} has no input {', '.join(sorted(unknown))}.")
        uses = _last_uses(block)
        for number, operation in enumerate(block.operations):
            self._execute(function, operation, values, states)
            for name in uses.get(number, ()):
                values.pop(name, None)
        return {name: values[name].astype(self.floats) for name in block.outputs}

    def _check(self, what: str, value: Array, value_type: Any) -> None:
        dtype, shape = np.dtype(_NUMBERS[value_type.tensorType.dataType]), _shape(value_type)
        if dtype == np.float16:
            dtype = self.floats
        if value.dtype != dtype or value.shape != shape:
            raise ValueError(
                f"{what} is {value.dtype} {list(value.shape)}, not {dtype} {list(shape)}."
            )

    def _execute(
        self, function: str, operation: Any, values: dict[str, Array], states: States
    ) -> None:
        kind = operation.type
        kept = None if kind not in _CONSTANTS else self._kept
        if kept is not None and (function, operation.outputs[0].name) in kept:
            name = operation.outputs[0].name
            values[name] = kept[function, name]
            return
        if kind == "read_state":
            found: list[Array] = [_widened(states[operation.inputs["input"].arguments[0].name])]
        elif kind == "write_state":
            name, value = (operation.inputs[key].arguments[0].name for key in ("input", "data"))
            states[name] = values[value].astype(self.floats)
            return
        elif kind in _CONSTANTS:
            found = [self._constant(operation)]
        else:
            operands = {
                key: [values[part.name] for part in argument.arguments]
                for key, argument in operation.inputs.items()
            }
            result = _OPERATORS[kind](operands)
            found = result if isinstance(result, list) else [result]
        for out, value in zip(operation.outputs, found, strict=True):
            if tuple(value.shape) != _shape(out.type):
                raise ValueError(
                    f"{kind} {out.name} is {value.shape}; its type says {_shape(out.type)}."
                )
            halves = out.type.tensorType.dataType == MIL_pb2.FLOAT16
            rounded = halves and self.floats == np.float16
            values[out.name] = _halved(value) if rounded else value
            if kept is not None:
                kept[function, out.name] = values[out.name]

    def _constant(self, operation: Any) -> Array:
        if operation.type == "const":
            return _widened(self._value(operation.attributes["val"]))
        data, scale, offset = (
            self._value(operation.inputs[part].arguments[0].value)
            if part in operation.inputs
            else None
            for part in ("data", "scale", "offset")
        )
        assert data is not None
        assert scale is not None
        return _dequantized(data, scale, offset)

    def _value(self, value: Any) -> Array:
        """A constant of the program, or of the weight file."""
        dtype, shape = value.type.tensorType.dataType, _shape(value.type)
        if value.HasField("blobFileValue"):
            return self._blob(dtype, value.blobFileValue.offset).reshape(shape)
        tensor = value.immediateValue.tensor
        if dtype == MIL_pb2.STRING:
            return np.array(tensor.strings.values[0])
        if dtype == MIL_pb2.FLOAT16:
            return np.frombuffer(tensor.bytes.values, np.float16).reshape(shape)
        numbers = tensor.bools.values if dtype == MIL_pb2.BOOL else tensor.ints.values
        return np.array(numbers, _NUMBERS[dtype]).reshape(shape)

    def _blob(self, dtype: int, offset: int) -> Array:
        reader = self._reader
        read = {
            MIL_pb2.INT4: reader.read_int4_data,
            MIL_pb2.UINT4: reader.read_uint4_data,
            MIL_pb2.INT8: reader.read_int8_data,
            MIL_pb2.UINT8: reader.read_uint8_data,
        }
        if dtype == MIL_pb2.FLOAT16:
            return np.asarray(reader.read_fp16_data(offset)).view(np.float16)
        return np.asarray(read[dtype](offset))


_CONSTANTS = ("const", "constexpr_blockwise_shift_scale")
_Operands = dict[str, list[Array]]


def _shape(value_type: Any) -> tuple[int, ...]:
    return tuple(each.constant.size for each in value_type.tensorType.dimensions)


def _widened(value: Array) -> Array:
    """Float16 as float32, in which numpy is fast."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _halved(value: Array) -> Array:
    return value.astype(np.float16).astype(np.float32)


def _last_uses(block: Any) -> dict[int, list[str]]:
    """Number of an operation -> the values that nothing reads afterwards."""
    last = {
        part.name: number
        for number, operation in enumerate(block.operations)
        for argument in operation.inputs.values()
        for part in argument.arguments
    }
    for name in block.outputs:
        last.pop(name, None)
    uses: dict[int, list[str]] = {}
    for name, number in last.items():
        uses.setdefault(number, []).append(name)
    return uses


def _dequantized(data: Array, scale: Array, offset: Array | None) -> Array:
    """Blocks along the last axis as float32."""
    rows, blocks = scale.shape
    codes = data.astype(np.float32).reshape(rows, blocks, -1)
    if offset is not None:
        codes -= offset.astype(np.float32)[..., None]
    codes *= scale.astype(np.float32)[..., None]
    return codes.reshape(data.shape)


def _sliced(operands: _Operands) -> tuple[slice, ...]:
    (begin,), (size,) = operands["begin"], operands["size"]
    return tuple(slice(a, a + n) for a, n in zip(begin, size, strict=True))


def _slice_update(operands: _Operands) -> Array:
    (x,), (update,) = operands["x"], operands["update"]
    (begin,), (end,) = operands["begin"], operands["end"]
    place = tuple(slice(a, b) for a, b in zip(begin, end, strict=True))
    result: Array = x.copy()
    if result[place].shape != update.shape:
        raise ValueError(f"{update.shape} do not fit into {result[place].shape}.")
    result[place] = update
    return result


def _split(operands: _Operands) -> list[Array]:
    (x,), (sizes,), (axis,) = operands["x"], operands["split_sizes"], operands["axis"]
    return np.split(x, np.cumsum(sizes)[:-1], axis=int(axis))


def _softmax(operands: _Operands) -> Array:
    (x,), (axis,) = operands["x"], operands["axis"]
    powers = np.exp(x - x.max(axis=int(axis), keepdims=True))
    return np.asarray(powers / powers.sum(axis=int(axis), keepdims=True))


def _matmul(operands: _Operands) -> Array:
    (x,), (y,) = operands["x"], operands["y"]
    if operands["transpose_x"][0]:
        x = x.swapaxes(-1, -2)
    if operands["transpose_y"][0]:
        y = y.swapaxes(-1, -2)
    return np.asarray(x @ y)


def _linear(operands: _Operands) -> Array:
    (x,), (weight,), (bias,) = operands["x"], operands["weight"], operands["bias"]
    return np.asarray(x @ weight.T + bias)


def _gelu(operands: _Operands) -> Array:
    (x,), (mode,) = operands["x"], operands["mode"]
    assert str(mode) == "TANH_APPROXIMATION"
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _reduced(function: Callable[..., Array]) -> Callable[[_Operands], Array]:
    def reduce(operands: _Operands) -> Array:
        (x,), (axes,), (keep,) = operands["x"], operands["axes"], operands["keep_dims"]
        return np.asarray(function(x, axis=tuple(axes.tolist()), keepdims=bool(keep)))

    return reduce


def _binary(function: Callable[[Array, Array], Array]) -> Callable[[_Operands], Array]:
    return lambda operands: function(operands["x"][0], operands["y"][0])


def _unary(function: Callable[[Array], Array]) -> Callable[[_Operands], Array]:
    return lambda operands: function(operands["x"][0])


_OPERATORS: dict[str, Callable[[_Operands], Array | list[Array]]] = {
    "abs": _unary(np.abs),
    "add": _binary(np.add),
    "concat": lambda o: np.concatenate(o["values"], axis=int(o["axis"][0])),
    "gather": lambda o: np.take(o["x"][0], o["indices"][0], axis=int(o["axis"][0])),
    "gelu": _gelu,
    "linear": _linear,
    "matmul": _matmul,
    "maximum": _binary(np.maximum),
    "mul": _binary(np.multiply),
    "real_div": _binary(np.divide),
    "reduce_max": _reduced(np.max),
    "reduce_mean": _reduced(np.mean),
    "reshape": lambda o: o["x"][0].reshape(o["shape"][0]),
    "rsqrt": lambda o: np.asarray(1 / np.sqrt(o["x"][0] + o["epsilon"][0])),
    "silu": _unary(lambda x: np.asarray(x / (1 + np.exp(-x)))),
    "slice_by_size": lambda o: o["x"][0][_sliced(o)],
    "slice_update": _slice_update,
    "softmax": _softmax,
    "split": _split,
    "tanh": _unary(np.tanh),
    "transpose": lambda o: o["x"][0].transpose(o["perm"][0]),
}
