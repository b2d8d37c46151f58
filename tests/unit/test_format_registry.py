"""Formats by name."""

from __future__ import annotations

import pytest
from edgesdk_quantize.formats import Int4, Int8Symmetric
from edgesdk_quantize.formats.ggml import Q4_K
from edgesdk_quantize.formats.qdq import A16W8
from edgesdk_quantize.formats.registry import FORMATS, format_named

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
    with pytest.raises(RequestError, match=r"Formats: int4, .*a16w4\."):
        format_named("zzzzzz")
