"""The threshold's risk guarantee, by trial and against exact binomials."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.confidence.linear_models import sigmoid
from edgesdk.hybrid.confidence.threshold import binomial_tail, calibrate


@pytest.mark.parametrize(("most", "trials", "chance"), [(0, 14, 0.2), (3, 40, 0.1), (40, 40, 0.3)])
def test_the_tail_is_exact(most: int, trials: int, chance: float) -> None:
    binomial = torch.distributions.Binomial(trials, torch.tensor(chance, dtype=torch.float64))
    wanted = binomial.log_prob(torch.arange(most + 1).double()).exp().sum()
    assert binomial_tail(most, trials, chance) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("skill", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("base", [-0.5, 1.0])
def test_the_promise_is_kept(skill: float, base: float) -> None:
    """The true error among the kept exceeds alpha in at most 5% of the draws of 100 labels."""
    rng = np.random.default_rng(1)
    confidence = rng.normal(size=50_000)
    right = rng.random(confidence.size) < sigmoid(skill * confidence + base)
    violations = promises = 0
    for _ in range(100):
        drawn = rng.integers(0, confidence.size, 100)
        found = calibrate(confidence[drawn].tolist(), right[drawn].tolist())
        if found.threshold is not None:
            promises += 1
            kept = confidence >= found.threshold
            violations += bool((~right[kept]).mean() > 0.2)
    # Of 100 trials at 5% each, more than 12 come out in less than one test of a thousand.
    assert violations <= 12
    if skill == 3.0 and base == 1.0:
        assert promises > 90


def test_ties_are_kept_together() -> None:
    found = calibrate([0.5] * 60, [True] * 55 + [False] * 5)
    assert (found.threshold, found.kept, found.wrong) == (0.5, 60, 5)
    assert "60 of 60, of which 5 were wrong" in found.phrase()


def test_it_says_when_there_are_too_few_labels() -> None:
    found = calibrate([0.9, 0.8, 0.7], [True, True, True])
    assert found.threshold is None
    assert found.missing is not None
    assert 10 < found.missing < 300
    assert "more might" in found.phrase()
    more = 3 + found.missing
    assert calibrate([i / more for i in range(more)], [True] * more).threshold is not None
    none = calibrate([], [])
    assert (none.threshold, none.missing) == (None, pytest.approx(74, abs=30))


def test_it_says_when_no_number_of_labels_helps() -> None:
    found = calibrate([i / 100 for i in range(100)], [i % 2 == 0 for i in range(100)])
    assert (found.threshold, found.missing) == (None, None)
    assert "more would not" in found.phrase()


@pytest.mark.parametrize(
    ("scores", "labels", "alpha"),
    [([0.1], [True, False], 0.2), ([0.1], [True], 0.0), ([float("nan")], [True], 0.2)],
)
def test_bad_input(scores: list[float], labels: list[bool], alpha: float) -> None:
    with pytest.raises(InvalidOption):
        calibrate(scores, labels, alpha=alpha)
