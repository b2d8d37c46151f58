"""Pack quantized matrices as other tools do, one bit after another: slow, and plainly the published
layouts. Each packer also gives the floats that were meant."""

from __future__ import annotations

import numpy as np
import torch

Parts = dict[str, torch.Tensor]


def words_of(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Rows of unsigned codes as int32 words, codes and words little end first."""
    rows = []
    for row in codes:
        number = sum(int(code) << (bits * i) for i, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([number >> (32 * i) & 0xFFFFFFFF for i in range(count)])
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


def rounded(weight: np.ndarray, bits: int, group: np.ndarray, *, symmetric: bool):
    """Codes [O, I], zero-points and scales [O, groups] of a matrix, and the floats that they mean;
    `group` is the group of each input."""
    groups = int(group.max()) + 1
    scales = np.empty((len(weight), groups), np.float16)
    zeros = np.full((len(weight), groups), 2 ** (bits - 1))
    for g in range(groups):
        part = weight[:, group == g]
        if symmetric:
            scales[:, g] = np.abs(part).max(1) / (2 ** (bits - 1) - 0.5)
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scales[:, g] = (high - low) / (2**bits - 1)
            zeros[:, g] = np.round(-low / scales[:, g].astype(np.float64))
    step = scales.astype(np.float32)[:, group]
    codes = np.clip(np.round(weight / step) + zeros[:, group], 0, 2**bits - 1).astype(np.int64)
    return codes, zeros, scales, (codes - zeros[:, group]).astype(np.float32) * step


def gptq(
    weight: np.ndarray, bits: int, size: int, *, act_order=False, symmetric=True, v2=False
) -> tuple[Parts, np.ndarray]:
    """GPTQ's parts of a matrix [O, I]; with `act_order` its groups are spread over the inputs."""
    inputs = weight.shape[1]
    group = np.arange(inputs) // size
    if act_order:
        group = np.random.default_rng(inputs).permutation(group)
    codes, zeros, scales, meant = rounded(weight, bits, group, symmetric=symmetric)
    stored = zeros if v2 else (zeros - 1) % 2**bits
    parts = {
        "qweight": words_of(codes, bits).T,
        "qzeros": words_of(stored.T, bits),
        "scales": torch.from_numpy(scales.T),
        "g_idx": torch.from_numpy(group.astype(np.int32)),
    }
    return parts, meant


def awq(weight: np.ndarray, size: int) -> tuple[Parts, np.ndarray]:
    """AWQ's parts of a matrix, in its "gemm" version."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    group = np.arange(weight.shape[1]) // size
    codes, zeros, scales, meant = rounded(weight, 4, group, symmetric=False)

    def shuffled(rows: np.ndarray) -> torch.Tensor:
        return words_of(rows.reshape(len(rows), -1, 8)[:, :, order].reshape(len(rows), -1), 4)

    parts = {
        "qweight": shuffled(codes.T),
        "qzeros": shuffled(zeros.T),
        "scales": torch.from_numpy(scales.T),
    }
    return parts, meant


def fp8(weight: np.ndarray, block: tuple[int, int] | None) -> tuple[Parts, np.ndarray]:
    """A float8 matrix with a scale for each block; None = for each row."""
    rows, columns = block or (1, weight.shape[1])
    grid = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    scales, meant = np.empty(grid, np.float32), np.empty_like(weight)
    stored = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i, j in np.ndindex(grid):
        place = np.s_[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
        scales[i, j] = np.abs(weight[place]).max() / 448
        small = torch.from_numpy(weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
        stored[place] = small
        meant[place] = small.float().numpy() * scales[i, j]
    name = "weight_scale_inv" if block else "weight_scale"
    return {"weight": stored, name: torch.from_numpy(scales)}, meant
