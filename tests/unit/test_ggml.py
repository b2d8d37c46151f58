"""ggml types: reading, refusals, and that rows may come in pieces."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from edgesdk_quantize.formats import ggml as ggml_library
from edgesdk_quantize.formats.ggml import (
    BF16,
    F16,
    F32,
    GGML_FORMATS,
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    Q4_0,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    fallback,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgesdk.errors import MissingExtra

pytest.importorskip("llama_cpp")

names = pytest.mark.parametrize("fmt", GGML_FORMATS, ids=lambda fmt: fmt.name)


def normal(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_t(5, (rows, columns)).astype(np.float32)


@names
def test_numbers_and_sizes_are_those_of_the_gguf_package(fmt):
    kind = gguf.GGMLQuantizationType[fmt.name]
    assert fmt.type_id == kind.value
    assert (fmt.block, fmt.block_bytes) == gguf.GGML_QUANT_SIZES[kind]


@names
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_blocks_are_read_as_the_gguf_package_reads_them(fmt, data):
    shape = (data.draw(st.integers(1, 3)), fmt.block_bytes * data.draw(st.integers(1, 2)))
    packed = data.draw(arrays(np.uint8, shape))
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[fmt.name])
    ours = fmt.dequantize(packed)
    # NaN and infinities are what random scales give now and then.
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[finite], theirs[finite])


@names
def test_a_tensor_may_come_in_pieces_of_any_layout(fmt):
    weights = normal(700, 512)
    importance = np.abs(normal(1, 512, seed=2)[0])
    whole = fmt.quantize(weights, importance)
    pieces = [fmt.quantize(weights[at : at + 90], importance) for at in range(0, 700, 90)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(fmt.quantize(np.asfortranarray(weights), importance), whole)


@pytest.mark.parametrize("fmt", [Q4_0, Q2_K, Q4_K, IQ4_XS], ids=lambda fmt: fmt.name)
def test_important_columns_come_back_closer(fmt):
    weights = normal(64, 256)
    importance = np.full(256, 0.01, np.float32)
    importance[::8] = 10
    plain = np.abs(fmt.dequantize(fmt.quantize(weights)) - weights)[:, ::8].mean()
    weighted = np.abs(fmt.dequantize(fmt.quantize(weights, importance)) - weights)[:, ::8].mean()
    assert weighted < 0.8 * plain


@names
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_place(fmt, bad):
    weights = normal(2000, 256)
    weights[1777, 17] = bad
    with pytest.raises(ValueError, match=r"\[1777, 17\] is -?(nan|inf)"):
        fmt.quantize(weights)


@pytest.mark.parametrize("fmt", [F16, Q4_0, Q8_0, Q4_K, Q6_K], ids=lambda fmt: fmt.name)
def test_what_float16_scales_cannot_hold_is_refused(fmt):
    with pytest.raises(ValueError, match=rf"up to 3e\+38, are beyond what {fmt.name} can hold"):
        fmt.quantize(np.full((1, 256), 3e38, np.float32))


def test_rows_that_blocks_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"rows of 288 values .* Q4_K, whose blocks are of 256"):
        Q4_K.quantize(normal(2, 288))
    with pytest.raises(ValueError, match=r"rows of 100 bytes .* Q4_0's blocks of 18"):
        Q4_0.dequantize(np.zeros((1, 100), np.uint8))


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones(255, np.float32), r"shape \[255\] do not fit rows of 256"),
        (np.full(256, -1, np.float32), "negative"),
        (np.full(256, np.nan, np.float32), "is nan"),
    ],
)
def test_importance_that_makes_no_sense_is_refused(importance, message):
    with pytest.raises(ValueError, match=message):
        Q4_K.quantize(normal(2, 256), importance)


def test_fallbacks():
    # The right side is what llama-quantize says; an integration test holds each against it.
    pairs = [(Q2_K, Q4_0), (Q4_K, Q5_0), (Q5_K, Q5_1), (Q6_K, Q8_0), (IQ4_XS, IQ4_NL), (Q3_K, Q4_0)]
    for wanted, smaller in pairs:
        assert fallback(wanted, 512) == wanted
        assert fallback(wanted, 96) == smaller
        assert fallback(wanted, 80) == F16
    assert fallback(Q8_0, 96) == Q8_0
    assert fallback(Q8_0, 80) == F16
    assert fallback(BF16, 7) == BF16
    assert fallback(F32, 7) == F32


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr(ggml_library.importlib.util, "find_spec", lambda name: None)
    ggml_library.ggml_library.cache_clear()
    try:
        with pytest.raises(MissingExtra, match=r"pip install 'edgesdk\[gguf\]'"):
            Q4_0.quantize(normal(1, 32))
    finally:
        ggml_library.ggml_library.cache_clear()
