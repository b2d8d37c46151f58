"""Trained grids: what a format stores for one is what was trained, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgesdk_export.distill.number_grid import _SCALE_RATE, NumberGrid
from edgesdk_quantize.formats import (
    CodedScales,
    Int4,
    Int4Offset,
    Int4Symmetric,
    Int8,
    PackedMatrix,
    ggml,
)
from edgesdk_quantize.formats.ggml import GgmlFormat
from edgesdk_quantize.formats.trained_grids import BlockGrid, first_grid, is_trainable

BLOCKS = [
    Int4(32),
    Int4(128),
    Int4Symmetric(32),
    CodedScales(Int4(128)),
    Int4Offset(32),
    Int4Offset(128),
    Int8(32),
]
FORMATS = [*BLOCKS, ggml.Q4_0, ggml.Q4_K]


def matrix(rows=24, columns=512):
    values = np.random.default_rng(3).normal(size=(rows, columns)).astype(np.float32)
    values[0, :256] = 0  # blocks of one value
    values[1, :256] = 0.25
    return values * np.float32(0.05)


def moved(fmt, rows):
    """A grid with scales and offsets as training leaves them."""
    torch.manual_seed(0)
    grid = NumberGrid(fmt, first_grid(fmt, rows))
    with torch.no_grad():
        grid.scale_moves += 0.005 * torch.randn_like(grid.scale_moves)
        if grid.offset_moves is not None:
            grid.offset_moves += 0.01 * torch.randn_like(grid.offset_moves)
    return grid


def dequantized(fmt, stored, columns):
    if isinstance(fmt, GgmlFormat):
        return fmt.dequantize(stored)
    assert isinstance(stored, PackedMatrix)
    return fmt.dequantize(stored, columns=columns)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.name}-{fmt.block}")
def test_what_is_stored_is_what_was_trained(fmt):
    rows = matrix()
    grid = moved(fmt, rows)
    with torch.no_grad():
        trained = grid(torch.from_numpy(rows)).numpy()
    stored = grid.packed(torch.from_numpy(rows))
    np.testing.assert_array_equal(dequantized(fmt, stored, 512), trained)
    assert np.abs(trained - rows).max() < 0.1
    # The codes count, not the weights that led to them: those of the grid's points are the same.
    again = grid.packed(torch.from_numpy(trained))
    np.testing.assert_array_equal(dequantized(fmt, again, 512), trained)


@pytest.mark.parametrize("fmt", [Int4(128), CodedScales(Int4(32))])
def test_a_last_block_that_is_not_full(fmt):
    rows = matrix(columns=144)
    grid = moved(fmt, rows)
    with torch.no_grad():
        trained = grid(torch.from_numpy(rows)).numpy()
    stored = grid.packed(torch.from_numpy(rows))
    np.testing.assert_array_equal(dequantized(fmt, stored, 144), trained)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.name}-{fmt.block}")
def test_training_begins_where_the_format_rounds(fmt):
    rows = matrix()
    with torch.no_grad():
        first = NumberGrid(fmt, first_grid(fmt, rows))(torch.from_numpy(rows)).numpy()
    plain = dequantized(fmt, fmt.quantize(rows), 512)

    def error(values):
        return float(np.square(values - rows).mean())

    assert error(first) < 1.01 * error(plain)


def test_gradients_by_hand():
    # One block of 16: a scale of 0.5 and a zero of 8 reach from -4 to 3.5.
    zeros = np.full((1, 1), 8, np.float32)
    grid = NumberGrid(Int4(16), BlockGrid(np.full((1, 1), 0.5, np.float32), zeros))
    weight = torch.zeros(1, 16)
    weight[0, :4] = torch.tensor([0.6, -1.2, 9.0, -9.0])
    weight.requires_grad_()
    values = grid(weight)
    assert values[0, :4].tolist() == [0.5, -1.0, 3.5, -4.0]
    (values * torch.tensor([[1.0, 2, 3, 4] + [5.0] * 12])).sum().backward()
    # Beyond the ends of the grid a weight has no gradient.
    assert weight.grad is not None
    assert weight.grad[0, :5].tolist() == [1.0, 2.0, 0.0, 0.0, 5.0]
    # Codes less their zeros are 1, -2, 7, -8; a scale moves 20 times as fast, relative to itself.
    of_scale = 1 * 1 - 2 * 2 + 7 * 3 - 8 * 4
    assert grid.scale_moves.grad is not None
    assert grid.scale_moves.grad.item() == pytest.approx(of_scale * 0.5 * _SCALE_RATE)


def test_fixed_codes_stay_while_scales_move():
    rows = torch.from_numpy(matrix())
    grid = NumberGrid(Int4(32), first_grid(Int4(32), rows.numpy()))
    grid.fix_codes(rows)
    before = grid.packed(rows)
    with torch.no_grad():
        grid.scale_moves += 0.02
    after = grid.packed(rows)
    assert isinstance(before, PackedMatrix)
    assert isinstance(after, PackedMatrix)
    np.testing.assert_array_equal(before.data, after.data)
    np.testing.assert_allclose(after.scales, 1.4 * before.scales, rtol=1e-5)


def test_types_without_a_trained_grid():
    assert is_trainable(ggml.Q4_0)
    assert is_trainable(Int4(64))
    assert not is_trainable(ggml.Q6_K)
