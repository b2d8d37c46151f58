"""Scales in 8 bits: what is stored is what was rounded to, and costs next to nothing."""

from __future__ import annotations

import numpy as np
import pytest
from edgesdk_quantize.formats import CodedScales, Int4, Int8, Int8Symmetric
from edgesdk_quantize.formats.blocks import dequantize
from edgesdk_quantize.formats.coded_scales import code_scales
from edgesdk_quantize.methods.gptq import RoundingOptions, quantize_calibrated
from edgesdk_quantize.methods.grid import quantize_searched
from edgesdk_quantize.methods.moments import SecondMoments
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

FORMATS = [Int4(), Int4(block=16), Int8(), Int8(block=64), Int8Symmetric()]
formats = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt.name}-{fmt.block}")
positive = st.floats(0, 2.0**100, width=32)


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32)


def error(packed, fmt, weights):
    found = dequantize(packed, bits=fmt.bits, columns=weights.shape[1])
    return float(np.square(found - weights).sum())


def check_stored(packed):
    assert packed.coded is not None
    assert packed.coded.codes.dtype == np.uint8
    assert packed.coded.codes.min() >= 1
    product = packed.coded.codes.astype(np.float32) * packed.coded.units
    np.testing.assert_array_equal(packed.scales, product)


@formats
@pytest.mark.parametrize("columns", [96, 100])
def test_a_byte_for_each_scale_loses_next_to_nothing(fmt, columns):
    weights = normal(64, columns)
    packed = CodedScales(fmt).quantize(weights)
    check_stored(packed)
    assert error(packed, fmt, weights) < 1.03 * error(fmt.quantize(weights), fmt, weights)


@pytest.mark.parametrize("fmt", [Int4(), Int4(block=16), Int8(block=64)])
def test_methods_round_to_the_scales_that_are_stored(fmt):
    weights = normal(24, 128)
    moments = SecondMoments(300, (np.eye(128, dtype=np.float32),))
    coded = CodedScales(fmt)
    for plain, packed in (
        (quantize_searched(weights, fmt), quantize_searched(weights, coded)),
        (
            quantize_calibrated(weights, fmt, moments, RoundingOptions()),
            quantize_calibrated(weights, coded, moments, RoundingOptions()),
        ),
    ):
        check_stored(packed)
        assert error(packed, fmt, weights) < 1.03 * error(plain, fmt, weights)


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 9)), elements=positive))
def test_codes_are_the_nearest_and_never_zero(scales):
    coded = code_scales(scales)
    assert coded.codes.shape == scales.shape
    assert coded.units.shape == (len(scales), 1)
    assert (coded.codes >= 1).all()
    wide = np.maximum(scales, coded.units)
    assert (np.abs(coded.values - wide) <= 0.501 * coded.units).all()


@formats
def test_stored_bits_are_those_of_the_arrays(fmt):
    packed = CodedScales(fmt).quantize(np.ones((3, 100), np.float32))
    arrays = [packed.data, packed.coded.codes, packed.coded.units, packed.zero_points]
    stored = sum(array.nbytes for array in arrays if array is not None)
    assert CodedScales(fmt).stored_bits(3, 100) == 8 * stored
