from __future__ import annotations

import numpy as np
import pytest
from edgesdk_quantize.formats.litert import INT4_LITERT, INT8_LITERT
from edgesdk_quantize.formats.qdq import QdqWeights
from edgesdk_quantize.formats.registry import format_named
from hypothesis import given
from hypothesis import strategies as st


def weights(seed: int, rows: int = 5, columns: int = 96, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-spread, spread, (rows, 1))
    return (rng.standard_normal((rows, columns)) * sizes).astype(np.float32)


def test_their_names() -> None:
    assert format_named("int8-litert") is INT8_LITERT
    assert format_named("INT4-LITERT") is INT4_LITERT
    assert (INT8_LITERT.recipe_bits, INT4_LITERT.recipe_bits) == (8, 4)


def test_8_bits_have_a_scale_for_each_row() -> None:
    values = weights(1)
    packed = INT8_LITERT.quantize(values)
    np.testing.assert_allclose(packed.scales, np.abs(values).max(axis=1) / 127, rtol=1e-6)
    np.testing.assert_array_equal(
        packed.codes, np.rint(values / packed.scales[:, None]).astype(np.int8)
    )
    error = np.abs(INT8_LITERT.dequantize(packed) - values)
    assert (error <= packed.scales[:, None] * 0.5001).all()


@given(st.integers(0, 2**32 - 1), st.floats(0, 6))
def test_scales_of_blocks_are_normal_numbers_of_both_half_types(seed: int, spread: float) -> None:
    scales = INT4_LITERT.quantize(weights(seed, spread=spread)).scales
    assert (scales >= np.finfo(np.float16).tiny).all()
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)
    # A bfloat16 is a float32 whose lower half is zeros.
    assert not (scales.view(np.uint32) & 0xFFFF).any()


def test_4_bits_are_rounded_with_the_scale_that_is_stored() -> None:
    values = weights(2)
    packed = INT4_LITERT.quantize(values)
    assert packed.scales.shape == (5, 3)
    wide = np.repeat(packed.scales, 32, axis=1)
    np.testing.assert_array_equal(packed.codes, np.clip(np.rint(values / wide), -8, 7))
    error = np.sqrt(np.mean((INT4_LITERT.dequantize(packed) - values) ** 2, axis=1))
    assert (error < 0.12 * np.sqrt(np.mean(values**2, axis=1))).all()


@pytest.mark.parametrize("fmt", [INT8_LITERT, INT4_LITERT])
def test_a_matrix_of_zeros(fmt: object) -> None:
    assert isinstance(fmt, type(INT8_LITERT))
    packed = fmt.quantize(np.zeros((2, 64), np.float32))
    assert (packed.scales > 0).all()
    assert not fmt.dequantize(packed).any()


def test_the_first_of_two_codes_is_the_low_half() -> None:
    codes = np.array([[-8, 7, 1, -1] + [0] * 28], np.int8)
    stored = INT4_LITERT.stored(QdqWeights(codes, np.ones((1, 1), np.float32)))
    assert stored[:2].tolist() == [0x78, 0xF1]


def test_stored_bits() -> None:
    assert INT8_LITERT.stored_bits(10, 64) == 10 * (64 * 8 + 32)
    assert INT4_LITERT.stored_bits(10, 64) == 10 * (64 * 4 + 2 * 16)
