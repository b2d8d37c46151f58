"""Quantize and read the number formats of GGUF files with ggml itself.

A matrix [N, K] is stored row by row; a row is K / block blocks of `block_bytes` bytes each, whose
fields follow each other without padding (ggml's src/ggml-common.h; all numbers little-endian,
`half` is float16):

    type     block  bytes  fields                                                    weight
    F32          1      4  float32
    F16          1      2  half
    BF16         1      2  the upper half of a float32
    Q4_0        32     18  half d; 16 of codes                                       d (q - 8)
    Q4_1        32     20  half d, m; 16 of codes                                    d q + m
    Q5_0        32     22  half d; 4 of fifth bits; 16 of codes                      d (q - 16)
    Q5_1        32     24  half d, m; 4 of fifth bits; 16 of codes                   d q + m
    Q8_0        32     34  half d; 32 signed codes                                   d q
    IQ4_NL      32     18  half d; 16 of codes                                       d table[q]
    Q2_K       256     84  16 of scales and minima; 64 of codes; half d, m           d s q - m t
    Q3_K       256    110  32 of third bits; 64 of codes; 12 of scales; half d       d (s - 32) q
    Q4_K       256    144  half d, m; 12 of scales and minima; 128 of codes          d s q - m t
    Q5_K       256    176  half d, m; 12 of both; 32 of fifth bits; 128 of codes     d s q - m t
    Q6_K       256    210  128 of codes; 64 of upper bits; 16 signed scales; half d  d s (q - 32)
    IQ4_XS     256    136  half d; 2 and 4 of scales; 128 of codes                   d s table[q]

The bytes are those of `llama-quantize`, which calls the same function, row by row, with the same
importance weights. Rows do not depend on each other, so a large tensor may come in pieces.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgesdk.errors import MissingExtra
from edgesdk_quantize.formats.blocks import Float32, UInt8, check_finite

# A thread's share at a time: 1 MiB of float32.
_TILE_VALUES = 2**18
# No block type reaches this far, and the sums of some searches overflow beyond it: they would
# give zeros without a word.
_BEYOND_BLOCKS = 1e15
_FLOAT_READERS = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}


@dataclass(frozen=True)
class GgmlFormat:
    """One of ggml's types.

    Attributes:
        name: ggml's own: "Q4_K".
        type_id: its number in GGUF files (`enum ggml_type`).
        block: weights of one row that are packed together.
        block_bytes: what they take.
        expected_error: see `BlockFormat.expected_error`.
        smaller: the type that stands in for it where its block does not divide the columns.
    """

    name: str
    type_id: int
    block: int
    block_bytes: int
    expected_error: float
    smaller: GgmlFormat | None = None

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized: F32, F16, BF16."""
        return self.block == 1

    @property
    def bits_per_weight(self) -> float:
        """Scales and minima included."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights.

        Raises:
            ValueError: the block does not divide them; see `fallback`.
        """
        if columns % self.block:
            raise ValueError(
                f"rows of {columns:,} values cannot be stored as {self.name}, whose blocks are of "
                f"{self.block}"
            )
        return columns // self.block * self.block_bytes

    def quantize(self, rows: Float32, importance: Float32 | None = None) -> UInt8:
        """Quantize float32 [N, K] to uint8 [N, row_bytes(K)], on all cores.

        Args:
            importance: float32 [K], not negative: how much an error in each column matters (an
                "imatrix" row: the mean square of the inputs). F32, F16, BF16 and Q8_0 ignore it.

        Raises:
            ValueError: a weight is NaN or infinite or beyond what the type can hold, the block
                does not divide K, or `importance` is of another length or negative.
            MissingExtra: llama-cpp-python is not installed.
        """
        library = ggml_library()
        count, columns = rows.shape
        packed = np.empty((count, self.row_bytes(columns)), np.uint8)
        weights = None if importance is None else _checked_importance(importance, columns)
        step = max(1, _TILE_VALUES // columns)

        def tile(start: int) -> None:
            part = np.ascontiguousarray(rows[start : start + step], np.float32)
            largest = max(float(part.max()), -float(part.min()))
            if not np.isfinite(largest):
                check_finite(part, first_row=start)
            target = packed[start : start + step]
            library.ggml_quantize_chunk(
                self.type_id,
                part.ctypes.data,
                target.ctypes.data,
                0,
                len(part),
                columns,
                None if weights is None else weights.ctypes.data,
            )
            if (self.block > 1 and largest > _BEYOND_BLOCKS) or not library.ggml_validate_row_data(
                self.type_id, target.ctypes.data, target.nbytes
            ):
                raise ValueError(
                    f"the values of rows {start} to {start + len(part) - 1}, of magnitudes up to "
                    f"{largest:g}, are beyond what {self.name} can hold"
                )

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(tile, range(0, count, step)):
                pass
        return packed

    def dequantize(self, packed: UInt8) -> Float32:
        """The float32 [N, K] that uint8 [N, row_bytes(K)] stands for.

        Raises:
            ValueError: the rows are no whole number of blocks.
            MissingExtra: llama-cpp-python is not installed.
        """
        count, row_bytes = packed.shape
        if row_bytes % self.block_bytes:
            raise ValueError(
                f"rows of {row_bytes:,} bytes are no whole number of {self.name}'s blocks of "
                f"{self.block_bytes}"
            )
        packed = np.ascontiguousarray(packed, np.uint8)
        if self == F32:
            return packed.view(np.float32)
        values = np.empty((count, row_bytes // self.block_bytes * self.block), np.float32)
        reader = _FLOAT_READERS.get(self.name)
        if reader is None:
            reader = "dequantize_row_" + self.name.lower().replace("_k", "_K")
        getattr(ggml_library(), reader)(
            ctypes.c_void_p(packed.ctypes.data),
            ctypes.c_void_p(values.ctypes.data),
            ctypes.c_int64(values.size),
        )
        return values


F32 = GgmlFormat("F32", 0, 1, 4, 5e-4)
F16 = GgmlFormat("F16", 1, 1, 2, 1e-3)
BF16 = GgmlFormat("BF16", 30, 1, 2, 3e-3)
Q4_0 = GgmlFormat("Q4_0", 2, 32, 18, 0.08)
Q4_1 = GgmlFormat("Q4_1", 3, 32, 20, 0.08)
Q5_0 = GgmlFormat("Q5_0", 6, 32, 22, 0.04)
Q5_1 = GgmlFormat("Q5_1", 7, 32, 24, 0.04)
Q8_0 = GgmlFormat("Q8_0", 8, 32, 34, 0.01)
IQ4_NL = GgmlFormat("IQ4_NL", 20, 32, 18, 0.08)
Q2_K = GgmlFormat("Q2_K", 10, 256, 84, 0.32, Q4_0)
Q3_K = GgmlFormat("Q3_K", 11, 256, 110, 0.16, Q4_0)
Q4_K = GgmlFormat("Q4_K", 12, 256, 144, 0.08, Q5_0)
Q5_K = GgmlFormat("Q5_K", 13, 256, 176, 0.04, Q5_1)
Q6_K = GgmlFormat("Q6_K", 14, 256, 210, 0.02, Q8_0)
IQ4_XS = GgmlFormat("IQ4_XS", 23, 256, 136, 0.08, IQ4_NL)

GGML_FORMATS = (
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    IQ4_NL,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_XS,
)


def fallback(wanted: GgmlFormat, columns: int) -> GgmlFormat:
    """What llama-quantize stores rows of `columns` weights in when `wanted` is asked for: itself
    where its block divides them, else a type with blocks of 32, else F16. Where `wanted` itself has
    blocks of 32, llama-quantize gives up, and this is F16 too. (`tensor_type_fallback` in
    llama.cpp's src/llama-quant.cpp.)"""
    if columns % wanted.block == 0:
        return wanted
    smaller = wanted.smaller or F16
    return smaller if columns % smaller.block == 0 else F16


def _checked_importance(importance: Float32, columns: int) -> npt.NDArray[np.float32]:
    if importance.shape != (columns,):
        raise ValueError(
            f"importance weights of shape {list(importance.shape)} do not fit rows of {columns:,}"
        )
    check_finite(importance)
    if (importance < 0).any():
        raise ValueError("importance weights cannot be negative")
    return np.ascontiguousarray(importance, np.float32)


_FILE = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}.get(
    sys.platform, "libggml-base.so"
)


@cache
def ggml_library() -> ctypes.CDLL:
    """The library, with the signatures of what is called here (ggml's include/ggml.h).

    llama_cpp itself is not imported: it would load every backend. Calls release the GIL.

    Raises:
        MissingExtra: llama-cpp-python is not installed, or came without the library.
    """
    path = _library_path()
    if path is None:
        raise MissingExtra("llama-cpp-python", extra="gguf", needed_for="Quantizing to ggml types")
    library = ctypes.CDLL(str(path))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        pointer,
        pointer,
        count,
        count,
        count,
        pointer,
    )
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = (ctypes.c_int, pointer, ctypes.c_size_t)
    return library


def _library_path() -> Path | None:
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "lib" / _FILE
    return path if path.is_file() else None
