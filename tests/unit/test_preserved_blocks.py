"""ggml's blocks as MatMulNBits blocks: the same numbers, or close ones."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from edgesdk_quantize.formats import Int4, Int4Symmetric, Int8, Int8Symmetric
from edgesdk_quantize.formats.blocks import with_zero_points
from edgesdk_quantize.formats.ggml import GGML_FORMATS, Q4_0, Q4_1, Q4_K, Q6_K
from edgesdk_quantize.formats.preserved_blocks import grid_steps, preserve_blocks, preserved_format
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

KEPT = {"Q4_0": 18, "Q5_0": 22, "Q8_0": 34, "IQ4_NL": 18}


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32)


def relative_error(values, exact):
    return np.sqrt(np.square(values - exact).sum() / np.square(exact).sum())


@pytest.mark.parametrize("source", KEPT)
@pytest.mark.parametrize("fmt", [Int4(), Int4(block=16), Int8Symmetric(), Int8(block=16)])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_any_kept_blocks_stand_for_the_same_values(source, fmt, data):
    kept = preserved_format(source, fmt)
    if fmt.bits == 4 and source != "Q4_0":
        assert kept is None
        return
    assert kept is not None
    assert (kept.bits, kept.block, kept.has_zero_points) == (fmt.bits, fmt.block, False)
    shape = (data.draw(st.integers(1, 3)), KEPT[source] * data.draw(st.integers(1, 3)))
    raw = data.draw(arrays(np.uint8, shape))
    # No scale is NaN or infinite.
    raw.reshape(shape[0], -1, KEPT[source])[..., 1] &= 0xBB
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[source])
    packed = preserve_blocks(source, raw, kept)
    np.testing.assert_array_equal(kept.dequantize(packed, columns=theirs.shape[1]), theirs)
    wide = with_zero_points(packed, fmt.bits)
    assert wide.zero_points is not None
    np.testing.assert_array_equal(kept.dequantize(wide, columns=theirs.shape[1]), theirs)


def test_what_does_not_fit_is_not_kept():
    assert preserved_format("Q4_0", Int4(block=64)) is None
    assert preserved_format("Q8_0", Int4Symmetric()) is None
    for source in ("Q4_1", "Q4_K", "Q6_K", "F16", "BF16", "TQ1_0"):
        assert preserved_format(source, Int8()) is None


@pytest.mark.parametrize("fmt", [Q4_1, Q4_K], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("block", [16, 32])
def test_steps_are_the_distance_of_neighbouring_values(fmt, block):
    raw = fmt.quantize(normal(4, 512))
    values = fmt.dequantize(raw).reshape(4, -1, block).astype(np.float64)
    steps = grid_steps(fmt.name, raw, block)
    assert steps.shape == values.shape[:2]
    codes = (values - values.min(-1, keepdims=True)) / steps[..., None]
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-4)
    assert codes.max() < 15.1
    # A step twice as long would do for no block of random weights.
    assert (np.rint(codes) % 2).any(-1).all()


def test_only_grids_of_one_step_per_block_have_steps():
    for fmt in GGML_FORMATS:
        raw = fmt.quantize(normal(2, 256))
        assert (grid_steps(fmt.name, raw, 32) is None) == (fmt not in (Q4_1, Q4_K))
    assert grid_steps("Q4_1", Q4_1.quantize(normal(2, 256)), 64) is None


@pytest.mark.parametrize("fmt", [Q4_1, Q4_K], ids=lambda fmt: fmt.name)
def test_rounding_again_with_the_steps_is_no_worse_in_any_block(fmt):
    raw = fmt.quantize(normal(64, 1024))
    values = fmt.dequantize(raw)
    searched, informed = (
        Int4().dequantize(Int4().requantize(values, steps), columns=1024)
        for steps in (None, grid_steps(fmt.name, raw, 32))
    )

    def errors(back):
        return np.square(back.astype(np.float64) - values).reshape(64, -1, 32).sum(-1)

    assert (errors(informed) <= errors(searched) * (1 + 1e-4)).all()
    # What is left is about as large as what the source itself lost.
    assert relative_error(informed, values) < 0.085


def test_a_source_grid_with_a_whole_zero_point_is_kept():
    """Codes that do not reach the ends of their range hide the step from the plain search."""
    rng = np.random.default_rng(3)
    step = rng.uniform(0.01, 0.1, (8, 16)).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(rng.normal(7.5, 1.4, (8, 16, 32))), 3, 12)
    values = ((codes - 7) * step[..., None]).reshape(8, 512).astype(np.float32)
    plain, informed = (
        Int4().dequantize(Int4().requantize(values, steps), columns=512) for steps in (None, step)
    )
    assert relative_error(informed, values) < 1e-6
    assert relative_error(plain, values) > 1e-3


@pytest.mark.parametrize("steps", [0.0, 1e-38, 1e30])
def test_steps_that_make_no_sense_do_no_harm(steps):
    weights = normal(4, 64)
    with np.errstate(all="raise", under="ignore"):
        packed = Int4().requantize(weights, np.full((4, 2), steps, np.float32))
    plain = Int4().dequantize(Int4().quantize(weights), columns=64)
    back = Int4().dequantize(packed, columns=64)
    assert relative_error(back, weights) <= relative_error(plain, weights) * (1 + 1e-4)


def test_eight_bits_lose_little_of_a_six_bit_grid():
    values = Q6_K.dequantize(Q6_K.quantize(normal(16, 512)))
    fmt = Int8Symmetric()
    back = fmt.dequantize(fmt.quantize(values), columns=512)
    assert 0 < relative_error(back, values) < 0.01


def test_a_file_of_q4_0_needs_no_zero_points():
    raw = Q4_0.quantize(normal(4, 64))
    assert preserve_blocks("Q4_0", raw, preserved_format("Q4_0", Int4())).zero_points is None
