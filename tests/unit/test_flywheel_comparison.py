"""When a new model is better: the sign test, and figures that must not become worse."""

from __future__ import annotations

import pytest
from edgesdk_export.flywheel.comparison import judge, sign_test
from edgesdk_export.flywheel.recipe import DecidingRecipe
from edgesdk_export.flywheel.regression import RegressionFigure
from scipy.stats import binomtest

RECIPE = DecidingRecipe()


@pytest.mark.parametrize(("gained", "lost"), [(1, 0), (5, 0), (9, 3), (3, 9), (40, 20)])
def test_the_sign_test_is_scipys(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue
    assert sign_test(gained, lost) == pytest.approx(expected)


def test_models_that_answer_alike_are_equally_good() -> None:
    verdict = judge([True, False], [True, False], [], RECIPE)
    assert not verdict.better
    assert verdict.chance == 1
    assert "luck" in verdict.reason


def test_a_gain_is_promoted_only_where_nothing_became_worse() -> None:
    before, after = [False] * 10, [True] * 8 + [False] * 2
    kept = RegressionFigure("perplexity of a text", 10.0, 10.1, 10.2, False)
    worse = RegressionFigure("perplexity of a text", 10.0, 10.3, 10.2, False)
    fewer = RegressionFigure("right answers of p", 0.9, 0.8, 0.88, True)
    assert judge(before, after, [kept], RECIPE).better
    assert not judge(before, after, [kept, worse], RECIPE).better
    found = judge(before, after, [fewer], RECIPE)
    assert not found.better
    assert "right answers of p went from 0.9 to 0.8" in found.reason
    assert (found.gained, found.lost, found.new_right) == (8, 0, 8)


def test_a_small_gain_may_be_luck() -> None:
    assert not judge([False] * 10, [True] * 4 + [False] * 6, [], RECIPE).better
    assert judge([False] * 10, [True] * 5 + [False] * 5, [], RECIPE).better
