"""Blocks of 4 bits with a real offset, beside ggml's Q4_K, whose grid they have."""

from __future__ import annotations

import numpy as np
import pytest
from edgesdk_quantize.formats import CodedScales, Int4, Int4Offset
from edgesdk_quantize.formats.blocks import stack_rows
from edgesdk_quantize.formats.ggml import Q4_1, Q4_K
from edgesdk_quantize.methods.gptq import RoundingOptions, quantize_calibrated
from edgesdk_quantize.methods.grid import quantize_searched, round_all, search_grid
from edgesdk_quantize.methods.moments import SecondMomentsMeter
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

FORM = Int4Offset()
blocks = pytest.mark.parametrize("block", [16, 32, 64, 128])


def normal(rows=32, columns=512, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def relative(fmt, weights):
    found = fmt.dequantize(fmt.quantize(weights), columns=weights.shape[1])
    return float(np.linalg.norm(found - weights) / np.linalg.norm(weights))


@pytest.mark.parametrize("ggml", [Q4_K, Q4_1], ids=["Q4_K", "Q4_1"])
def test_weights_of_ggml_with_minima_keep_their_grid(ggml):
    weights = ggml.dequantize(ggml.quantize(normal()))
    assert relative(FORM, weights) < 0.01
    assert relative(CodedScales(Int4()), weights) > 0.05


def test_random_weights_lose_less_than_with_zero_points_and_no_more_than_in_q4_k():
    weights = normal(64, 1536)
    q4_k = np.linalg.norm(Q4_K.dequantize(Q4_K.quantize(weights)) - weights)
    assert relative(FORM, weights) < 0.93 * relative(CodedScales(Int4()), weights)
    assert relative(FORM, weights) < 1.02 * q4_k / np.linalg.norm(weights)


@blocks
def test_the_budget_counts_every_stored_byte(block):
    fmt, weights = Int4Offset(block), normal(8, 1536)
    packed = fmt.quantize(weights)
    assert packed.coded is not None
    assert packed.offsets is not None
    assert packed.offsets.coded is not None
    parts = [packed.data, packed.coded.codes, packed.coded.units]
    parts += [packed.offsets.data, packed.offsets.coded.codes, packed.offsets.coded.units]
    assert 8 * sum(part.nbytes for part in parts) == fmt.stored_bits(*weights.shape)


@blocks
def test_methods_pack_just_what_they_rounded_to(block):
    fmt, weights = Int4Offset(block), normal(24, 256)
    importance = np.exp(normal(1, 256, seed=1)[0])
    points = round_all(search_grid(weights, fmt, importance), np.ascontiguousarray(weights.T)).T
    found = fmt.dequantize(quantize_searched(weights, fmt, importance), columns=256)
    np.testing.assert_allclose(found, points, rtol=1e-5, atol=1e-5)


def test_gptq_lowers_the_output_error_on_grids_with_offsets():
    weights, inputs = normal(24, 128), normal(2000, 128, seed=2)
    inputs[:, 1:] += inputs[:, :-1]
    meter = SecondMomentsMeter(128)
    meter.add(inputs)

    def error(packed):
        wrong = FORM.dequantize(packed, columns=128) - weights
        return float(np.square(inputs @ wrong.T).sum())

    moments = meter.result()
    by_itself = error(quantize_searched(weights, FORM, moments.importance))
    assert error(quantize_calibrated(weights, FORM, moments, RoundingOptions())) < 0.9 * by_itself


def test_columns_that_the_block_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="rows of 100 values"):
        FORM.quantize(normal(4, 100))


def test_rows_put_together_stay_what_they_are():
    upper, lower = normal(5, 64), normal(3, 64, seed=3)
    joined = stack_rows([FORM.quantize(upper), FORM.quantize(lower)], 4)
    apart = [FORM.dequantize(FORM.quantize(part), columns=64) for part in (upper, lower)]
    np.testing.assert_array_equal(FORM.dequantize(joined, columns=64), np.concatenate(apart))


@given(arrays(np.float32, (2, 64), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
@example(np.zeros((2, 64), np.float32))
@example(np.full((2, 64), 3.5, np.float32))
def test_any_finite_weights_come_back_near(weights):
    found = FORM.dequantize(FORM.quantize(weights), columns=64)
    assert np.isfinite(found).all()
    # A step is at most a 14th of what lies between a row's ends and zero; the stored scales and
    # offsets of small blocks beside large ones add a little.
    span = np.abs(weights).max(axis=1, keepdims=True)
    assert (np.abs(found - weights) <= 0.2 * span + 1e-30).all()
