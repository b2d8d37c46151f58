from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from edgesdk.errors import InvalidOption
from edgesdk.options import Options, OptionsKwargs, options_from


def test_keyword_arguments_are_the_options_fields() -> None:
    fields = {field.name for field in dataclasses.fields(Options)}

    assert set(OptionsKwargs.__annotations__) == fields
    assert OptionsKwargs.__total__ is False


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_tokens", 0, "from 1"),
        ("max_tokens", 2.5, "whole number"),
        ("max_tokens", True, "whole number"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", math.nan, "at least 0"),
        ("temperature", math.inf, "at least 0"),
        ("temperature", "hot", "number"),
        ("top_k", -1, "from 0"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("min_p", 1.5, "at most 1"),
        ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", 3, "at most 2"),
        ("frequency_penalty", -3, "at least -2"),
        ("penalty_window", 0, "from 1"),
        ("seed", -1, "from 0"),
        ("deadline", 0, "above 0"),
        ("stop", "", "not empty"),
        ("stop", ["a", ""], "not empty"),
        ("stop", 3, "not empty"),
        ("logit_bias", [1], "must map"),
        ("logit_bias", {-1: 1.0}, "token id"),
        ("logit_bias", {1: math.nan}, "finite number"),
        ("logit_bias", {1: math.inf}, "finite number"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(name: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidOption, match=said) as caught:
        options_from({name: value})

    assert name in str(caught.value)


def test_an_unknown_option_suggests_the_nearest() -> None:
    with pytest.raises(InvalidOption, match=r"'temprature'.*Did you mean 'temperature'"):
        options_from({"temprature": 0.5})


def test_a_single_stop_text_is_not_taken_apart() -> None:
    assert options_from({"stop": "END"}).stops == ("END",)


def test_a_forbidden_token_is_a_bias_of_minus_infinity() -> None:
    assert options_from({"logit_bias": {5: -math.inf}}).logit_bias == {5: -math.inf}


def test_options_do_not_follow_later_changes_of_what_they_were_made_from() -> None:
    bias = {1: 1.0}
    options = Options(logit_bias=bias)

    bias[2] = 5.0

    assert options.logit_bias == {1: 1.0}
