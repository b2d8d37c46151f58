"""The tests for drift: their levels by enumeration and by trial, their power by trial."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.monitor.monitor import RiskMonitor, ShiftDetector, ks_p_value


def alarm(watch: RiskMonitor, wrong: np.ndarray) -> int | None:
    """After how many audits it came."""
    for number, one in enumerate(wrong.tolist(), 1):
        watch.update(one)
        if watch.drifted:
            return number
    return None


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.6])
def test_the_capital_is_a_fair_game_where_the_promise_just_holds(alpha: float) -> None:
    """The mean over all outcomes, weighed by their chance, is the 1 that it began with."""
    mean = 0.0
    for outcomes in product([False, True], repeat=12):
        watch = RiskMonitor(alpha, 0.05)
        for wrong in outcomes:
            watch.update(wrong)
        mean += watch.e_value * alpha ** sum(outcomes) * (1 - alpha) ** (12 - sum(outcomes))
    assert mean == pytest.approx(1, abs=1e-9)


def test_a_promise_that_holds_is_rarely_doubted() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(
        alarm(RiskMonitor(0.2, 0.05), rng.random(150) < 0.2) is not None for _ in range(120)
    )
    # Of 120 trials at 5% each, more than 14 come out in less than one test of a thousand.
    assert alarms <= 14


def test_a_broken_promise_is_found_after_a_long_good_time() -> None:
    rng = np.random.default_rng(1)
    delays, starts = [], []
    for _ in range(25):
        watch = RiskMonitor(0.2, 0.05)
        found = alarm(watch, np.concatenate([rng.random(200) < 0.1, rng.random(200) < 0.5]))
        assert found is not None
        delays.append(found - 200)
        starts.append(watch.since)
    assert 0 < np.median(delays) < 60
    assert 190 <= np.median(starts) <= 210


def test_drift_stays_and_all_wrong_is_found_at_once() -> None:
    watch = RiskMonitor(0.2, 0.05)
    assert (watch.e_value, watch.since) == (1.0, 0)
    assert (alarm(watch, np.ones(20, bool)) or 99) <= 6
    for _ in range(200):
        watch.update(False)
    assert watch.drifted
    assert watch.e_value < 1


@pytest.mark.parametrize(("alpha", "delta"), [(0.0, 0.05), (1.0, 0.05), (0.2, 0.0), (0.2, 1.0)])
def test_what_is_no_probability_is_refused(alpha: float, delta: float) -> None:
    with pytest.raises(InvalidOption):
        RiskMonitor(alpha, delta)


@pytest.mark.parametrize(("size", "step"), [(10, 6), (10, 7), (25, 9), (200, 30)])
def test_two_samples_of_one_size_against_the_closed_form(size: int, step: int) -> None:
    """Gnedenko and Korolyuk 1951."""
    wanted = 2 * sum(
        (-1) ** (i + 1) * comb(2 * size, size - i * step) / comb(2 * size, size)
        for i in range(1, size // step + 1)
    )
    one = np.arange(size, dtype=float)
    found = ks_p_value(one, one + step - 0.5)
    assert found == pytest.approx(wanted, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
)
def test_two_samples_against_all_orders(one: list[int], other: list[int]) -> None:
    def distance(first: list[float], second: list[float]) -> float:
        return max(
            abs(np.mean(np.array(first) <= x) - np.mean(np.array(second) <= x))
            for x in [*first, *second]
        )

    total, far, seen = 0, 0, distance(list(map(float, one)), list(map(float, other)))
    everyone = range(len(one) + len(other))
    for chosen in combinations(everyone, len(one)):
        rest = [i for i in everyone if i not in chosen]
        total += 1
        far += distance(list(map(float, chosen)), list(map(float, rest))) >= seen - 1e-9
    found = ks_p_value(np.array(one, float), np.array(other, float))
    assert found == pytest.approx(far / total, abs=1e-12)


def test_inputs_that_moved_are_told_once() -> None:
    rng = np.random.default_rng(2)
    watch = ShiftDetector(rng.beta(5, 2, 300).tolist())
    told = [watch.update(x) for x in rng.beta(2, 2, 500)]
    assert sum(told) == 1
    assert told.index(True) == 99
    assert watch.shifted


def test_inputs_that_stay_raise_no_alarm() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(30):
        watch = ShiftDetector(rng.beta(5, 2, 60).tolist(), window=50)
        alarms += any(watch.update(x) for x in rng.beta(5, 2, 200))
    # Of 30 trials at 1% each, more than 4 come out in less than one test of ten thousand.
    assert alarms <= 4


def test_without_labels_no_input_is_strange() -> None:
    watch = ShiftDetector(())
    assert not any(watch.update(0.5) for _ in range(300))
