"""Rounding methods: their optimality properties, and GPTQ against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from edgesdk_quantize.formats import Int4, Int4Symmetric, Int8
from edgesdk_quantize.formats.blocks import dequantize
from edgesdk_quantize.methods.awq import search_channel_scales
from edgesdk_quantize.methods.gptq import (
    RoundingOptions,
    damped,
    gptq_round,
    quantize_calibrated,
    refine,
)
from edgesdk_quantize.methods.grid import (
    Grid,
    pack_rounded,
    quantize_searched,
    round_all,
    search_grid,
)
from edgesdk_quantize.methods.moments import (
    SecondMoments,
    SecondMomentsMeter,
    moment_slices,
    output_error,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

FORMATS = [Int4(), Int4Symmetric(), Int8(), Int4(block=16), Int4Symmetric(block=64)]
formats = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.name}-{fmt.block}")

finite = st.floats(-1e6, 1e6, width=32)
matrices = st.integers(1, 3).flatmap(
    lambda rows: st.integers(1, 70).flatmap(
        lambda columns: arrays(np.float32, (rows, columns), elements=finite)
    )
)


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32)


def correlated(columns, seed=1, tokens=400):
    """Second moments of inputs that depend on each other and differ in size."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) * np.exp(rng.normal(0, 1, columns))
    inputs = (rng.standard_normal((tokens, columns)) @ mix).astype(np.float32)
    return SecondMoments(tokens, (inputs.T @ inputs / np.float32(tokens),))


def restored(packed, fmt, columns):
    return dequantize(packed, bits=fmt.bits, columns=columns)


def plain_grid(weights, fmt):
    """The ends of each block's range on the ends of the codes; without zero-points the largest
    magnitude on the lowest code."""
    blocks = [weights[:, at : at + fmt.block] for at in range(0, weights.shape[1], fmt.block)]
    top, middle = np.float32(2**fmt.bits - 1), np.float32(2 ** (fmt.bits - 1))
    scales, zeros = [], []
    for block in blocks:
        low, high = block.min(axis=1), block.max(axis=1)
        if fmt.has_zero_points:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scale = (high - low) / top
        else:
            scale = np.where(-low >= high, -low, -high) / middle
        scale = np.where(np.abs(scale) > 1e-30, scale, np.float32(1))
        scales.append(scale)
        zeros.append(np.rint(-low / scale) if fmt.has_zero_points else np.full_like(low, middle))
    return Grid(fmt, np.array(scales, np.float32), np.array(zeros, np.float32))


def naive_gptq(weights, grid, second):
    """Optimal brain quantization in a fixed order: after each column, all later ones move by the
    closed form, from the inverse of what is left of `second`. O(n^4), float64, straight from the
    paper's equations 2 and 3."""
    order = list(np.argsort(-np.diagonal(second), kind="stable"))
    weights = weights.astype(np.float64).copy()
    left = np.linalg.inv(second.astype(np.float64))[np.ix_(order, order)]
    rounded = np.zeros_like(weights)
    remaining = list(order)
    for column in order:
        at = remaining.index(column)
        rounded[column] = grid.round(column, weights[column].astype(np.float32))
        error = (weights[column] - rounded[column]) / left[at, at]
        for place, other in enumerate(remaining):
            if other != column:
                weights[other] -= error * left[place, at]
        left = left - np.outer(left[:, at], left[at]) / left[at, at]
        left = np.delete(np.delete(left, at, 0), at, 1)
        remaining.pop(at)
    return rounded


@formats
def test_gptq_is_optimal_brain_quantization_in_order(fmt):
    weights, second = normal(3, 96), damped(correlated(96).slices[0], 0.01)
    grid = search_grid(weights, fmt, np.diagonal(second))
    found = gptq_round(np.ascontiguousarray(weights.T), grid, second, damping=0.0)
    expected = naive_gptq(np.ascontiguousarray(weights.T), grid, second)
    # float32 against float64: a tie may fall to the other side, and its followers with it.
    same = np.isclose(found, expected, atol=1e-5)
    assert same.mean() > 0.97
    assert output_error((found - weights.T).T, SecondMoments(1, (second,))) == pytest.approx(
        output_error((expected - weights.T).T.astype(np.float32), SecondMoments(1, (second,))),
        rel=0.02,
    )


@formats
def test_gptq_beats_rounding_each_weight_by_itself(fmt):
    for seed in range(3):
        weights, moments = normal(8, 160, seed), correlated(160, seed + 10)
        grid = search_grid(weights, fmt, moments.importance)
        columns = np.ascontiguousarray(weights.T)
        alone = round_all(grid, columns)
        together = gptq_round(columns, grid, moments.slices[0])
        assert output_error((together - columns).T, moments) < 0.8 * output_error(
            (alone - columns).T, moments
        )


@formats
def test_gptq_lies_on_the_grid_of_the_packed_format(fmt):
    weights, moments = normal(5, 100), correlated(100)
    grid = search_grid(weights, fmt, moments.importance)
    rounded = gptq_round(np.ascontiguousarray(weights.T), grid, moments.slices[0])
    np.testing.assert_allclose(
        restored(pack_rounded(grid, rounded), fmt, 100), rounded.T, rtol=1e-5, atol=1e-6
    )


def test_gptq_rounds_to_nearest_where_inputs_are_unrelated():
    weights = normal(4, 64)
    second = np.diag(np.random.default_rng(0).uniform(1, 9, 64)).astype(np.float32)
    grid = search_grid(weights, Int4(), None)
    columns = np.ascontiguousarray(weights.T)
    assert np.array_equal(gptq_round(columns, grid, second), round_all(grid, columns))


def test_gptq_takes_moments_of_fewer_tokens_than_channels():
    weights, moments = normal(4, 128), correlated(128, tokens=20)
    packed = quantize_calibrated(weights, Int4(), moments, RoundingOptions(sweeps=1))
    assert np.isfinite(restored(packed, Int4(), 128)).all()


def test_gptq_takes_inputs_that_were_never_seen():
    moments = SecondMoments(10, (np.zeros((64, 64), np.float32),))
    weights = normal(2, 64)
    packed = quantize_calibrated(weights, Int4(), moments, RoundingOptions())
    # Nothing is known, so each weight is rounded by itself.
    np.testing.assert_allclose(restored(packed, Int4(), 64), weights, atol=0.5)


@formats
def test_refinement_never_raises_the_output_error(fmt):
    weights, moments = normal(6, 144), correlated(144)
    second = damped(moments.slices[0], 0.01)
    columns = np.ascontiguousarray(weights.T)
    grid = plain_grid(weights, fmt)
    points = round_all(grid, columns)
    errors = [output_error((points - columns).T, SecondMoments(1, (second,)))]
    for _ in range(3):
        grid, points = refine(columns, grid, points, second, sweeps=1)
        errors.append(output_error((points - columns).T, SecondMoments(1, (second,))))
        np.testing.assert_allclose(
            restored(pack_rounded(grid, points), fmt, 144), points.T, rtol=1e-4, atol=1e-5
        )
    assert all(after <= before * (1 + 1e-4) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


# Errors so small beside the weights that float32 sums of squares cannot order them.
@example(weights=np.array([[-618158.0, *[446779.0] * 31]], np.float32), seed=1)
@example(weights=np.array([[-632577.0, -872096.4, -632577.0]], np.float32), seed=0)
@formats
@given(weights=matrices, seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_search_is_never_worse_than_the_plain_range(fmt, weights, seed):
    columns = weights.shape[1]
    importance = np.exp(np.random.default_rng(seed).normal(0, 2, columns)).astype(np.float32)
    plain, found = (
        round_all(grid, np.ascontiguousarray(weights.T)).T
        for grid in (plain_grid(weights, fmt), search_grid(weights, fmt, importance))
    )

    def error(rounded):
        return float((np.square(rounded.astype(np.float64) - weights) * importance).sum())

    size = float((np.square(weights.astype(np.float64)) * importance).sum())
    # Points of a grid are float32: at this magnitude two of them may be off by 1e-3 of the error.
    assert error(found) <= error(plain) * (1 + 2e-3) + 1e-12 * size


def test_search_follows_importance():
    weights = normal(16, 128)
    importance = np.ones(128, np.float32)
    importance[::8] = 1000
    errors = [
        np.square(restored(quantize_searched(weights, Int4(), given), Int4(), 128) - weights)
        for given in (None, importance)
    ]
    assert errors[1][:, ::8].mean() < 0.5 * errors[0][:, ::8].mean()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_named(value):
    weights = normal(2, 32)
    weights[1, 5] = value
    with pytest.raises(ValueError, match=r"\[1, 5\]"):
        quantize_searched(weights, Int4())
    with pytest.raises(ValueError, match=r"\[1, 5\]"):
        quantize_calibrated(weights, Int4(), correlated(32), RoundingOptions())


@pytest.mark.parametrize("columns", [64, 9_216, 9_217, 18_944, 29_568])
def test_wide_inputs_are_cut_where_blocks_begin(columns):
    parts = moment_slices(columns)
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert (parts[0].start, parts[-1].stop) == (0, columns)
    assert all(part.start % 128 == 0 and part.stop - part.start <= 9_216 for part in parts)


def test_moments_are_means_over_all_windows():
    inputs = normal(60, 8)
    meter = SecondMomentsMeter(8)
    for window in np.split(inputs, 3):
        meter.add(window)
    moments = meter.result()
    np.testing.assert_allclose(moments.slices[0], inputs.T @ inputs / 60, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moments.importance, np.square(inputs).mean(axis=0), rtol=1e-5)


def test_a_matrix_cut_in_slices_is_rounded_slice_by_slice():
    weights = normal(4, 256)
    one, other = correlated(128, 1).slices[0], correlated(128, 2).slices[0]
    whole = quantize_calibrated(
        weights, Int4(), SecondMoments(1, (one, other)), RoundingOptions(sweeps=1)
    )
    halves = [
        quantize_calibrated(
            np.ascontiguousarray(half),
            Int4(),
            SecondMoments(1, (second,)),
            RoundingOptions(sweeps=1),
        )
        for half, second in ((weights[:, :128], one), (weights[:, 128:], other))
    ]
    apart = np.concatenate([restored(half, Int4(), 128) for half in halves], axis=1)
    # The search weighs channels by the largest of all, so a last digit may differ.
    assert np.isclose(restored(whole, Int4(), 256), apart, atol=1e-2).mean() > 0.95


def scaled_error(weights, scales, moments):
    grid = plain_grid(weights * scales, Int4())
    points = round_all(grid, np.ascontiguousarray((weights * scales).T)).T
    return output_error(points / scales - weights, moments)


def test_channel_scales_shield_large_inputs():
    weights, rng = normal(32, 128), np.random.default_rng(5)
    inputs = rng.standard_normal((500, 128)).astype(np.float32)
    inputs[:, ::16] *= 30
    moments = SecondMoments(500, (inputs.T @ inputs / np.float32(500),))
    scales = search_channel_scales([weights], Int4(), moments)
    assert np.log(scales).mean() == pytest.approx(0, abs=1e-4)
    assert scales[::16].min() > scales[1::16].max()
    plain = scaled_error(weights, np.ones(128, np.float32), moments)
    assert scaled_error(weights, scales, moments) < 0.7 * plain


def test_channel_scales_stay_where_all_inputs_are_alike():
    moments = SecondMoments(1, (np.eye(64, dtype=np.float32),))
    weights = normal(8, 64)
    weights /= np.sqrt(np.square(weights).mean(axis=0))
    scales = search_channel_scales([weights], Int4(), moments)
    np.testing.assert_allclose(scales, np.ones(64, np.float32), rtol=1e-5)


def test_channel_scales_even_out_columns_of_many_sizes():
    sizes = np.exp(normal(1, 128, seed=9)[0])
    moments = SecondMoments(1, (np.diag(1 / np.square(sizes)),))
    weights = normal(256, 128) * sizes
    scales = search_channel_scales([weights], Int4(), moments)
    evened = np.log(scales * sizes)
    assert evened.std() < 0.2 * np.log(sizes).std()


def test_channels_of_one_value_head_share_their_scale():
    moments = correlated(64)
    scales = search_channel_scales([normal(8, 64)], Int4(), moments, shared=(2, 8))
    heads = scales.reshape(2, 4, 8)
    np.testing.assert_array_equal(heads, np.broadcast_to(heads[:, :1], heads.shape))
