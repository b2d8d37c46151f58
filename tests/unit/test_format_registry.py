"""Formats by name."""

from __future__ import annotations

import numpy as np
import pytest
from edgesdk_quantize.formats import FP16, Int4, Int4Offset, Int4Symmetric, Int8, Int8Symmetric
from edgesdk_quantize.formats.ggml import Q4_K
from edgesdk_quantize.formats.qdq import A16W8
from edgesdk_quantize.formats.registry import (
    FORMATS,
    embedding_formats,
    format_named,
    formats_by_bits,
    select_format,
)

from edgesdk.errors import RequestError


def test_names_in_any_case():
    assert format_named("int4") == Int4(block=32)
    assert format_named("int8-symmetric-128") == Int8Symmetric(block=128)
    assert format_named("Q4_K") == format_named("q4_k") == Q4_K
    assert format_named("a16w8") == A16W8


def test_every_format_is_found_by_its_own_name():
    for fmt in FORMATS.values():
        assert format_named(fmt.name).name == fmt.name


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("Q4K", "q4_k"), ("int-4", "int4"), ("a16w88", "a16w8"), ("iq4xs", "iq4_xs")],
)
def test_a_typo_is_told_what_was_near(typo, meant):
    with pytest.raises(RequestError, match=rf"'{typo}'\. Did you mean .*\b{meant}\b"):
        format_named(typo)


def test_nonsense_is_told_everything():
    with pytest.raises(RequestError, match=r"Formats: int4, .*a16w4, w8, .*int4-litert\."):
        format_named("zzzzzz")


def test_bits_alone_choose_the_format_with_zero_points():
    found = {bits: fmt.name for bits, fmt in formats_by_bits().items()}
    assert found == {4: "int4", 8: "int8", 16: "fp16", 32: "fp32"}


@pytest.mark.parametrize(
    ("bits", "settings", "expected"),
    [
        (4, {}, Int4(64)),
        (4, {"symmetric": True}, Int4Symmetric(64)),
        (4, {"offsets": True}, Int4Offset(64)),
        (8, {"symmetric": True}, Int8Symmetric(64)),
        (8, {"offsets": True}, Int8(64)),
        (16, {"symmetric": True, "offsets": True}, FP16),
    ],
)
def test_a_recipe_s_keys_choose_among_formats_of_as_many_bits(bits, settings, expected):
    assert select_format(bits, block=64, **settings) == expected


def test_bits_that_no_format_has_are_refused():
    with pytest.raises(RequestError, match="no symmetric format of 3 bits"):
        select_format(3, block=32, symmetric=True)


def test_only_formats_of_8_bits_and_floats_hold_embeddings():
    assert embedding_formats() == ("int8", "int8-symmetric", "fp32", "fp16")


def test_every_format_expects_an_error_and_fewer_bits_a_larger_one():
    assert all(0 < fmt.expected_error < 1 for fmt in FORMATS.values())
    errors = [FORMATS[name].expected_error for name in ("fp32", "fp16", "q8_0", "q6_k", "q4_k")]
    assert errors == sorted(errors)


def test_a_float16_that_is_too_large_is_refused_with_its_size():
    with pytest.raises(ValueError, match="has a value of magnitude 70000; float16 ends at 65504"):
        FP16.quantize(np.array([[1.0, -7e4]], np.float32))
