"""No caller and no thread spends more than there is."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgesdk.errors import BudgetExceeded, InvalidOption, RequestError
from edgesdk.hybrid.cloud.spending import DAY, HOUR, Budget, Cost, SpendingLimits


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_reserved_cannot_be_reserved_again() -> None:
    budget = Budget(SpendingLimits(money_per_day=1.0))
    first = budget.reserve(Cost(0.6))
    with pytest.raises(BudgetExceeded, match="money_per_day is 1"):
        budget.reserve(Cost(0.5))
    first.settle(Cost(0.1))
    budget.reserve(Cost(0.9))
    assert budget.spent() == Cost(1.0, 0)


def test_what_was_not_sent_is_free_again() -> None:
    budget = Budget(SpendingLimits(tokens_per_hour=100))
    budget.reserve(Cost(tokens=100)).release()
    budget.reserve(Cost(tokens=100))
    assert budget.spent(HOUR) == Cost(0.0, 100)


def test_windows_slide_and_say_when_there_is_room() -> None:
    clock = Clock()
    budget = Budget(SpendingLimits(money_per_hour=1.0, money_per_day=1.5), clock=clock)
    budget.reserve(Cost(0.8))
    clock.now += 600
    with pytest.raises(BudgetExceeded) as hour:
        budget.reserve(Cost(0.3))
    assert (hour.value.limit, hour.value.free_in) == ("money_per_hour", HOUR - 600)
    clock.now += HOUR
    budget.reserve(Cost(0.7))
    clock.now += HOUR
    with pytest.raises(BudgetExceeded) as day:
        budget.reserve(Cost(0.1))
    assert day.value.limit == "money_per_day"
    clock.now += DAY
    budget.reserve(Cost(1.0))


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (SpendingLimits(money_per_call=0.1), "money_per_call"),
        (SpendingLimits(tokens_per_call=10), "tokens_per_call"),
        (SpendingLimits(tokens_per_day=10), "tokens_per_day"),
    ],
)
def test_a_call_that_can_never_be_paid(limits: SpendingLimits, name: str) -> None:
    with pytest.raises(BudgetExceeded) as raised:
        Budget(limits).reserve(Cost(0.2, 11))
    assert (raised.value.limit, raised.value.free_in) == (name, None)


def test_a_dead_process_keeps_what_it_reserved(tmp_path: Path) -> None:
    path = tmp_path / "budget.sqlite"
    Budget(SpendingLimits(money_per_day=1.0), path).reserve(Cost(0.7))
    with pytest.raises(BudgetExceeded):
        Budget(SpendingLimits(money_per_day=1.0), path).reserve(Cost(0.7))


def test_eight_callers_at_once(tmp_path: Path) -> None:
    budget = Budget(SpendingLimits(money_per_day=1.0), tmp_path / "b.sqlite")
    won: list[int] = []
    ready = threading.Barrier(8)

    def call(number: int) -> None:
        ready.wait(10)
        for _ in range(20):
            try:
                reservation = budget.reserve(Cost(0.03))
            except BudgetExceeded:
                continue
            reservation.settle(Cost(0.02))
            won.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.spent().money == pytest.approx(0.02 * len(won))
    assert 0.95 <= budget.spent().money <= 1.0


def test_limits_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="money_per_day"):
        SpendingLimits(money_per_day=-1)
    with pytest.raises(InvalidOption, match="money_per_hour"):
        SpendingLimits(money_per_hour=float("nan"))
    (tmp_path / "text").write_text("this is not a database, " * 50)
    with pytest.raises(RequestError, match="cannot be used"):
        Budget(SpendingLimits(), tmp_path / "text")
