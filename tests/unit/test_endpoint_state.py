"""An endpoint that keeps failing is left alone, and then tried by one request."""

from __future__ import annotations

import pytest

from edgesdk.hybrid.cloud import endpoint_state
from edgesdk.hybrid.cloud.endpoint_state import CircuitBreaker, RetryBudget

ERROR = RuntimeError("no")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(endpoint_state, "monotonic", found)
    return found


def fail(breaker: CircuitBreaker, times: int = 1, retry_after: float | None = None) -> None:
    for _ in range(times):
        breaker.begin()
        breaker.fail(ERROR, retry_after=retry_after)


def test_it_opens_after_failures_in_a_row(clock: Clock) -> None:
    breaker = CircuitBreaker()
    fail(breaker, 2)
    breaker.begin()
    breaker.succeed()
    fail(breaker, 2)
    assert breaker.open_for == 0
    fail(breaker)
    assert breaker.open_for == 1
    assert breaker.last_error is ERROR
    clock.now += 1
    assert breaker.open_for == 0


def test_one_request_tries_whether_the_endpoint_is_back(clock: Clock) -> None:
    breaker = CircuitBreaker()
    fail(breaker, 3)
    clock.now += 1
    breaker.begin()
    assert breaker.open_for > 0
    # It told nothing, so the next may try.
    breaker.abandon()
    assert breaker.open_for == 0
    breaker.begin()
    breaker.succeed()
    fail(breaker, 2)
    assert breaker.open_for == 0


def test_each_time_it_is_open_for_longer_up_to_five_seconds(clock: Clock) -> None:
    breaker = CircuitBreaker()
    fail(breaker, 2)
    opened = []
    for _ in range(6):
        fail(breaker)
        opened.append(breaker.open_for)
        clock.now += breaker.open_for
    assert opened == [1, 2, 4, 5, 5, 5]


@pytest.mark.parametrize("every", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("outage", [1.0, 7.0, 36.0, 600.0])
def test_it_is_asked_again_within_ten_seconds_of_its_recovery(
    clock: Clock, outage: float, every: float
) -> None:
    breaker, recovered = CircuitBreaker(), clock.now + outage
    while True:
        if not breaker.open_for:
            breaker.begin()
            if clock.now >= recovered:
                break
            breaker.fail(ERROR)
        clock.now += every
    assert clock.now - recovered <= 10


def test_one_that_stays_away_is_seldom_asked(clock: Clock) -> None:
    breaker, asked = CircuitBreaker(), 0
    for _ in range(6_000):
        if not breaker.open_for:
            asked += 1
            fail(breaker)
        clock.now += 0.1
    # Every five seconds, of the 600 there are.
    assert asked <= 125


def test_the_request_that_tries_may_take_twice_what_is_usual(clock: Clock) -> None:
    breaker = CircuitBreaker()
    breaker.begin()
    breaker.succeed(4.0)
    assert breaker.probe_seconds is None
    fail(breaker, 3)
    assert breaker.probe_seconds == 8
    fast = CircuitBreaker()
    fail(fast, 3)
    assert fast.probe_seconds == 3


def test_an_endpoint_may_ask_to_be_left_alone(clock: Clock) -> None:
    breaker = CircuitBreaker()
    fail(breaker, retry_after=20)
    assert breaker.open_for == 20
    # A shorter wait does not undo a longer one.
    fail(breaker, retry_after=1)
    assert breaker.open_for == 20
    clock.now += 20
    assert breaker.open_for == 0


def test_retries_end_when_much_fails() -> None:
    budget = RetryBudget()
    for _ in range(4):
        budget.fail()
    assert not budget.exhausted
    budget.fail()
    assert budget.exhausted
    # Ten successes pay for one failure.
    for _ in range(11):
        budget.succeed()
    assert not budget.exhausted
    for _ in range(1_000):
        budget.succeed()
    for _ in range(4):
        budget.fail()
    assert not budget.exhausted
