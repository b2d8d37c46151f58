"""From the blocks of a GGUF file to those of MatMulNBits, without a second rounding where the
grids agree.

Where ggml's weights are `d * code` with whole codes, one float16 `d` for every 32, MatMulNBits
holds the very same numbers: Q4_0 in 4 bits; Q4_0, Q5_0, Q8_0 and IQ4_NL in 8. The others have a
float minimum in each block (Q4_1, Q5_1, Q2_K, Q4_K, Q5_K), for which MatMulNBits has only a slow
kernel, or scales for other groups; they are rounded again. Layouts: see `formats.ggml`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgesdk_quantize.formats import ggml
from edgesdk_quantize.formats.blocks import BlockFormat, Float32, PackedMatrix, UInt8, pack
from edgesdk_quantize.formats.int4 import Int4Symmetric
from edgesdk_quantize.formats.int8 import Int8Symmetric

_Int8 = npt.NDArray[np.int8]

_GROUP = 32
# `kvalues_iq4nl` of ggml's src/ggml-common.h.
_IQ4_NL = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


def preserved_format(source: str, fmt: BlockFormat) -> BlockFormat | None:
    """The format, of `fmt`'s bits and block, that holds every weight of ggml type `source` as it
    is; None where there is none."""
    found = _READERS.get(source)
    if found is None or found[0] > fmt.bits or _GROUP % fmt.block:
        return None
    kind = Int4Symmetric if fmt.bits == 4 else Int8Symmetric
    return kind(block=fmt.block)


def preserve_blocks(source: str, raw: UInt8, fmt: BlockFormat) -> PackedMatrix:
    """Rows of ggml type `source`, uint8 [N, bytes of a row], in a format of `preserved_format`."""
    groups = _blocks(source, raw)
    signed = _READERS[source][1](groups)
    codes = (signed.astype(np.int16) + (1 << (fmt.bits - 1))).astype(np.uint8)
    per_row = groups.shape[1] * _GROUP // fmt.block
    scales = groups[..., :2].copy().view("<f2")[..., 0].astype(np.float32)
    data = pack(codes.reshape(len(raw), per_row, fmt.block), fmt.bits)
    return PackedMatrix(data, np.repeat(scales, _GROUP // fmt.block, axis=1), None)


def grid_steps(source: str, raw: UInt8, block: int) -> Float32 | None:
    """The distance of neighbouring values in each block of `block` weights, float32 [N, blocks]:
    for types of 4-bit codes with minima. None for others, and for blocks of several groups."""
    if _GROUP % block or source not in ("Q4_1", "Q4_K"):
        return None
    blocks = _blocks(source, raw)
    steps = blocks[..., :2].copy().view("<f2").astype(np.float32)
    if source == "Q4_K":
        # 6-bit scales of 8 groups; `get_scale_min_k4` of ggml's src/ggml-quants.c.
        low, shared = blocks[..., 4:8], blocks[..., 12:16]
        scales = np.concatenate([low & 63, (shared & 15) | (low >> 6) << 4], axis=-1)
        steps = steps * scales
    groups = np.abs(steps).reshape(len(raw), steps.shape[1] * steps.shape[2])
    return np.repeat(groups, _GROUP // block, axis=1)


def _blocks(source: str, raw: UInt8) -> UInt8:
    size = _BLOCK_BYTES[source]
    return raw.reshape(len(raw), raw.shape[1] // size, size)


def _halves(codes: UInt8) -> UInt8:
    """ggml keeps the first 16 codes of a group in low halves, the other 16 in high ones."""
    return np.concatenate([codes & 15, codes >> 4], axis=-1)


def _q4_0(blocks: UInt8) -> _Int8:
    codes: _Int8 = _halves(blocks[..., 2:]).view(np.int8) - np.int8(8)
    return codes


def _q5_0(blocks: UInt8) -> _Int8:
    fifth = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
    codes: _Int8 = (_halves(blocks[..., 6:]) | fifth << 4).view(np.int8) - np.int8(16)
    return codes


def _q8_0(blocks: UInt8) -> _Int8:
    return blocks[..., 2:].view(np.int8)


def _iq4_nl(blocks: UInt8) -> _Int8:
    return _IQ4_NL[_halves(blocks[..., 2:])]


# Bits that the codes need, and the codes [N, groups, 32] of blocks [N, groups, bytes].
_READERS: dict[str, tuple[int, Callable[[UInt8], _Int8]]] = {
    "Q4_0": (4, _q4_0),
    "Q5_0": (8, _q5_0),
    "Q8_0": (8, _q8_0),
    "IQ4_NL": (8, _iq4_nl),
}
_BLOCK_BYTES = {fmt.name: fmt.block_bytes for fmt in ggml.GGML_FORMATS}
