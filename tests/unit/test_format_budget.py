"""Choosing formats under a size budget, against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from edgesdk_quantize.formats import Int4, Int4Symmetric, Int8
from edgesdk_quantize.methods.format_budget import FormatOption, choose_formats
from hypothesis import given, settings
from hypothesis import strategies as st

options = st.lists(
    st.builds(FormatOption, st.integers(1, 9), st.floats(0, 9, allow_subnormal=False)),
    min_size=1,
    max_size=3,
)


@given(st.lists(options, min_size=1, max_size=4), st.floats(0, 1))
@settings(deadline=None)
def test_choices_are_near_the_best_of_all(matrices, part):
    choices = {str(index): options for index, options in enumerate(matrices)}
    smallest = sum(min(option.bits for option in options) for options in matrices)
    largest = sum(max(option.bits for option in options) for options in matrices)
    budget = smallest + part * (largest - smallest)
    found = choose_formats(choices, budget)
    taken = [options[found[str(index)]] for index, options in enumerate(matrices)]
    assert sum(option.bits for option in taken) <= budget
    best = min(
        sum(option.cost for option in combination)
        for combination in itertools.product(*matrices)
        if sum(option.bits for option in combination) <= budget
    )
    # A greedy walk along convex hulls misses the best by no more than one step of one matrix.
    step = max(
        max(option.cost for option in options) - min(option.cost for option in options)
        for options in matrices
    )
    assert sum(option.cost for option in taken) <= best + step + 1e-9


def test_all_the_budget_there_is_takes_the_best():
    choices = {
        "a": [FormatOption(1, 5), FormatOption(2, 1)],
        "b": [FormatOption(1, 9), FormatOption(4, 0)],
    }
    assert choose_formats(choices, 100) == {"a": 1, "b": 1}
    assert choose_formats(choices, 3) == {"a": 1, "b": 0}


def test_a_budget_below_the_smallest_is_refused():
    with pytest.raises(ValueError, match="smallest choices take 3 bits; the budget is 2"):
        choose_formats({"a": [FormatOption(3, 1), FormatOption(5, 0)]}, 2)


@pytest.mark.parametrize("fmt", [Int4(), Int4Symmetric(block=128), Int8(block=64), Int4(block=16)])
def test_stored_bits_are_those_of_the_packed_arrays(fmt):
    packed = fmt.quantize(np.ones((3, 100), np.float32))
    arrays = [packed.data, packed.scales, packed.zero_points]
    stored = sum(array.nbytes for array in arrays if array is not None)
    assert fmt.stored_bits(3, 100) == 8 * stored
