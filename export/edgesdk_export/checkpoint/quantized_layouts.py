"""Give the floats of matrices that another tool has quantized, a few rows at a time.

Layouts, for a matrix of O outputs and I inputs (all codes little end first within a word):

    GPTQ     qweight int32 [I * bits / 32, O], packed along the inputs; scales [groups, O];
             qzeros int32 [groups, O * bits / 32], which hold the zero-point minus 1, but for
             checkpoint_format "gptq_v2"; g_idx int32 [I], the group of each input
    AWQ      qweight int32 [I, O / 8], of which nibble n of a word is output 0 2 4 6 1 3 5 7 [n];
             qzeros int32 [groups, O / 8] in the same order; scales [groups, O]
    compressed-tensors
             weight_packed int32 [O, words], codes + 2^(bits - 1), weight_shape [2]; weight_scale
             [O, groups]; weight_zero_point int32 [words, groups], packed along the outputs;
             weight_g_idx int32 [I]; or weight int8 or float8 with weight_scale and, at times,
             weight_zero_point
    FP8      weight float8 [O, I] with weight_scale_inv or weight_scale, by which it is multiplied:
             one number, one a row, or one a block (weight_block_size, [128, 128])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edgesdk_export.checkpoint.safetensors_reader import SafetensorsTensor
from edgesdk_export.weights import Float32

Codes = npt.NDArray[np.uint8]
Groups = npt.NDArray[np.int64]
Parts = Mapping[str, SafetensorsTensor]

SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight")
_AWQ_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
# The 256 values of each type of 8 bits, float32.
_EIGHT_BITS: Mapping[str, Float32] = {
    name: np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    for name, kind in (
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
        ("I8", np.int8),
    )
}


@dataclass(frozen=True)
class QuantizedTensor:
    """A matrix of several stored tensors; a `LazyTensor`.

    Attributes:
        dtype: the tool's name and the bits: "GPTQ4".
        decode: gives rows [start, stop) as float32.
    """

    shape: tuple[int, ...]
    dtype: str
    decode: Callable[[int, int], Float32]

    def rows(self, start: int, stop: int) -> Float32:
        """Rows [start, stop) as float32."""
        if start == stop:
            return np.empty((0, *self.shape[1:]), np.float32)
        return self.decode(start, stop)


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(what)


def _gptq(parts: Parts, settings: Mapping[str, Any]) -> QuantizedTensor:
    words, scales, zeros = parts["qweight"], parts["scales"], parts["qzeros"]
    groups, outputs = scales.shape
    if "g_idx" in parts:
        inputs = parts["g_idx"].shape[0]
        group = parts["g_idx"].stored().astype(np.int64)
    else:
        inputs = words.shape[0] * 32 // int(settings["bits"])
        size = int(settings.get("group_size", -1))
        group = np.arange(inputs) // (inputs if size <= 0 else size)
    bits = words.shape[0] * 32 // inputs
    _require(
        bits in (2, 3, 4, 8)
        and words.shape == (inputs * bits // 32, outputs)
        and zeros.shape == (groups, outputs * bits // 32)
        and bool(((group >= 0) & (group < groups)).all()),
        "its shapes do not fit",
    )
    # What is stored is the zero-point minus 1; zero itself wraps around.
    offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1

    def decode(start: int, stop: int) -> Float32:
        codes = _unpacked(words.stored()[:, start:stop].T, bits, inputs)
        stored = _unpacked(zeros.stored(), bits, outputs)[:, start:stop]
        zero = (stored + np.uint8(offset)) & np.uint8(2**bits - 1)
        scale = scales.rows(0, groups)[:, start:stop].T
        return _floats(codes, zero.T, scale, group)

    return QuantizedTensor((outputs, inputs), f"GPTQ{bits}", decode)


def _awq(parts: Parts, settings: Mapping[str, Any]) -> QuantizedTensor:
    words, scales = parts["qweight"], parts["scales"]
    inputs, (groups, outputs) = words.shape[0], scales.shape
    zeros = parts.get("qzeros")
    _require(
        words.shape == (inputs, outputs // 8)
        and outputs % 8 == 0
        and inputs % groups == 0
        and (zeros is None or zeros.shape == (groups, outputs // 8)),
        "the shapes are not those of 4 bits in the 'gemm' version",
    )
    place = np.argsort(_AWQ_OUTPUTS)
    group = np.arange(inputs) // (inputs // groups)

    def columns(tensor: SafetensorsTensor, start: int, stop: int) -> Codes:
        first = start // 8
        packed = tensor.stored()[:, first : -(-stop // 8)]
        nibbles = _unpacked(packed, 4, packed.shape[1] * 8).reshape(len(packed), -1, 8)
        return nibbles[:, :, place].reshape(len(packed), -1)[:, start - 8 * first :][
            :, : stop - start
        ]

    def decode(start: int, stop: int) -> Float32:
        scale = scales.rows(0, groups)[:, start:stop].T
        middle: Codes = np.full((groups, stop - start), 8, np.uint8)
        zero = middle if zeros is None else columns(zeros, start, stop)
        return _floats(columns(words, start, stop).T, zero.T, scale, group)

    return QuantizedTensor((outputs, inputs), "AWQ4", decode)


def _compressed(parts: Parts, settings: Mapping[str, Any]) -> QuantizedTensor:
    if "weight_packed" not in parts:
        return _scaled(parts, settings)
    words, scales = parts["weight_packed"], parts["weight_scale"]
    outputs, inputs = (int(size) for size in parts["weight_shape"].stored())
    bits, dense = _packing(words.shape[1], inputs, _stated_bits(settings))
    groups = scales.shape[1] if len(scales.shape) == 2 else 1
    if "weight_g_idx" in parts:
        group = parts["weight_g_idx"].stored().astype(np.int64)
    else:
        group = np.arange(inputs) // -(-inputs // groups)
    zeros, half = parts.get("weight_zero_point"), 2 ** (bits - 1)
    _require(
        words.dtype == "I32"
        and words.shape[0] == outputs
        and len(group) == inputs
        and math.prod(scales.shape) in (1, outputs * groups)
        and bool(((group >= 0) & (group < groups)).all())
        and (zeros is None or zeros.dtype != "I32" or zeros.shape[1] == groups),
        "its shapes do not fit",
    )

    def decode(start: int, stop: int) -> Float32:
        codes = _unpacked(words.stored(start, stop), bits, inputs, dense=dense)
        if zeros is None:
            zero: npt.NDArray[Any] = np.full((1, groups), half, np.uint8)
        elif zeros.dtype == "I32":
            zero = _unpacked(zeros.stored().T, bits, outputs, dense=dense).T[start:stop]
        else:
            zero = zeros.stored(start, stop).astype(np.int32).reshape(-1, groups) + half
        scale = scales.rows(*_rows_of(scales, start, stop)).reshape(-1, groups)
        return _floats(codes, zero, scale, group)

    return QuantizedTensor((outputs, inputs), f"INT{bits}", decode)


def _scaled(parts: Parts, settings: Mapping[str, Any]) -> QuantizedTensor:
    weight, zeros = parts["weight"], parts.get("weight_zero_point")
    scales = parts[next((name for name in SCALES if name in parts), SCALES[0])]
    _require(weight.dtype in ("F8_E4M3", "F8_E5M2", "I8"), f"a weight in {weight.dtype}")
    _require(len(weight.shape) == 2, "a weight that is no matrix")
    _require(_is_number(scales), f"scales in {scales.dtype}")
    _require(
        zeros is None or (_is_number(zeros) and zeros.shape == scales.shape),
        "zero-points of another shape or type",
    )
    outputs, inputs = weight.shape
    block = _block_of(scales.shape, (outputs, inputs), settings)

    def decode(start: int, stop: int) -> Float32:
        values = _numbers(weight, start, stop)
        if zeros is not None:
            values = values - _spread(_numbers(zeros), block, start, stop, inputs)
        return values * _spread(_numbers(scales), block, start, stop, inputs)

    return QuantizedTensor((outputs, inputs), weight.dtype, decode)


READERS: Mapping[str, Callable[[Parts, Mapping[str, Any]], QuantizedTensor]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed,
    "fp8": _scaled,
    "fbgemm_fp8": _scaled,
    "modelopt FP8": _scaled,
}


def _floats(codes: Codes, zeros: npt.NDArray[Any], scales: Float32, group: Groups) -> Float32:
    """(code - zero) * scale of codes [rows, columns]; zeros and scales are [rows, groups]."""
    values: Float32 = codes.astype(np.float32, order="C")
    zero, groups = zeros.astype(np.float32), scales.shape[1]
    size = len(group) // groups
    if size * groups == len(group) and np.array_equal(group, np.arange(len(group)) // size):
        blocks = values.reshape(len(values), groups, size)
        blocks -= zero[:, :, None]
        blocks *= scales[:, :, None]
    else:
        values -= zero[:, group]
        values *= scales[:, group]
    return values


def _unpacked(words: npt.NDArray[Any], bits: int, count: int, *, dense: bool = True) -> Codes:
    """The first `count` codes of each row of int32 words [rows, words] as uint8 [rows, count].
    Dense codes may reach from one word into the next; else a word's last bits are left empty."""
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    mask = np.uint8(2**bits - 1)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes: Codes = unsigned.view(np.uint8)[:, :, None] >> shifts & mask
    elif not dense:
        steps = np.arange(0, 32 // bits * bits, bits, dtype=np.uint32)
        codes = (unsigned[:, :, None] >> steps).astype(np.uint8) & mask
    else:
        stream = np.unpackbits(unsigned.view(np.uint8), axis=1, bitorder="little")
        taken = stream[:, : stream.shape[1] // bits * bits].reshape(len(words), -1, bits)
        codes = np.packbits(taken, axis=2, bitorder="little")
    return codes.reshape(len(words), -1)[:, :count]


def _packing(words: int, inputs: int, stated: set[int]) -> tuple[int, bool]:
    """The bits of a code, and whether codes are packed densely, by how many words a row has."""
    for bits in sorted(stated or {4, 8}):
        if words == -(-inputs * bits // 32):
            return bits, True
        if words == -(-inputs // (32 // bits)):
            return bits, False
    raise ValueError(f"{words} words do not hold {inputs} codes of {sorted(stated)} bits")


def _stated_bits(settings: Mapping[str, Any]) -> set[int]:
    found = (weights.get("num_bits") for weights in _groups_of(settings))
    return {bits for bits in found if isinstance(bits, int) and 1 <= bits <= 8}


def _groups_of(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    entries = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [entry.get("weights") for entry in entries if isinstance(entry, Mapping)]
    return [entry for entry in weights if isinstance(entry, Mapping)]


def _block_of(
    grid: tuple[int, ...], shape: tuple[int, int], settings: Mapping[str, Any]
) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    if math.prod(grid) == 1:
        return shape
    if grid in ((shape[0],), (shape[0], 1)):
        return 1, shape[1]
    stated = [settings.get("weight_block_size")]
    stated += [weights.get("block_structure") for weights in _groups_of(settings)]
    for block in stated:
        if isinstance(block, list) and len(block) == 2 and all(_is_size(size) for size in block):
            rows, columns = block
            if grid == (-(-shape[0] // rows), -(-shape[1] // columns)):
                return rows, columns
    _require(
        len(grid) == 2 and all(n and size % n == 0 for n, size in zip(grid, shape, strict=True)),
        f"a grid {list(grid)} of scales",
    )
    return shape[0] // grid[0], shape[1] // grid[1]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _spread(grid: Float32, block: tuple[int, int], start: int, stop: int, columns: int) -> Float32:
    """The values of a grid for rows [start, stop) of a matrix, [rows, columns] or broadcast to."""
    if grid.size == 1:
        return grid.reshape(1, 1)
    if grid.ndim == 1:
        grid = grid[:, None]
    rows = grid[np.arange(start, stop) // block[0]]
    if rows.shape[1] == 1:
        return rows
    return np.repeat(rows, block[1], axis=1)[:, :columns]


def _rows_of(tensor: SafetensorsTensor, start: int, stop: int) -> tuple[int, int]:
    """Rows [start, stop), or all where one value is for the whole matrix."""
    return (0, 1) if math.prod(tensor.shape) == 1 else (start, stop)


def _is_number(tensor: SafetensorsTensor) -> bool:
    return tensor.dtype in (*_EIGHT_BITS, "F16", "BF16", "F32", "F64")


def _numbers(tensor: SafetensorsTensor, start: int = 0, stop: int | None = None) -> Float32:
    """Rows of a tensor as float32, whatever 8 bits mean in it."""
    if tensor.dtype in _EIGHT_BITS:
        values: Float32 = _EIGHT_BITS[tensor.dtype][tensor.stored(start, stop).view(np.uint8)]
        return values
    if not tensor.shape:
        return tensor.scalar()
    return tensor.rows(start, tensor.shape[0] if stop is None else stop)
