"""No caller and no thread spends more than there is."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engine import fake_model
from support.other_process import run_python

from edgesdk.errors import BudgetExceeded, InvalidOption, RequestError
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import (
    DAY,
    HOUR,
    Budget,
    CallSpending,
    Cost,
    SpendingLimits,
)
from edgesdk.hybrid.cloud.wire import Usage


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
    budget.reserve(Cost(tokens=100)).settle(Cost())
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


@pytest.mark.parametrize("wrong", [{"money": -1}, {"tokens": -1}, {"money": float("nan")},
                                   {"money": float("inf")}, {"tokens": float("nan")}])  # fmt: skip
def test_a_cost_that_would_refill_a_budget_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match="negative or endless"):
        Cost(**wrong)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_would_refill_a_budget_is_none(price: float) -> None:
    with pytest.raises(InvalidOption, match="price"):
        Cloud("https://x.example/v1", "m", input_price=price)


CLOUD = Cloud("https://x.example/v1", "m", input_price=1e6, output_price=1e6)
NO_COUNTS = [-1, -(10**30), 0, float("nan"), float("-inf"), -0.5]


def charged(usage: Usage | None, answer_bytes: int = 300, output: int = 1000) -> int:
    """The tokens of a call whose prompt had at most 500, by the budget and by the call."""
    budget = Budget(SpendingLimits())
    spending = CallSpending(budget, 500, output)
    spending.reserve(CLOUD).settle(usage, answer_bytes)
    spending.settle()
    assert spending.cost == budget.spent()
    assert spending.cost.money == spending.cost.tokens
    return spending.cost.tokens


def test_what_an_endpoint_counted_is_what_it_costs() -> None:
    assert charged(Usage(400, 50)) == 450
    # Reasoning that nobody sees, and another tokenizer.
    assert charged(Usage(600, 3000)) == 3600
    assert charged(Usage(400.0, 50.5)) == 451  # type: ignore[arg-type]


@pytest.mark.parametrize("count", NO_COUNTS)
def test_a_count_that_is_none_is_estimated(count: Any) -> None:
    assert charged(None) == 500 + 100
    assert charged(Usage(count, count)) == 500 + 100
    assert charged(Usage(400, count)) == 400 + 100
    assert charged(Usage(count, 50)) == 500 + 50
    # No answer is longer than it was allowed to be.
    assert charged(Usage(count, count), answer_bytes=10**9) == 500 + 1000
    assert charged(None, answer_bytes=0) == 500


@pytest.mark.parametrize("count", [10**6, 10**30, float("inf"), 1e300])
def test_a_count_that_is_too_large_is_not_believed(count: Any) -> None:
    assert charged(Usage(count, 50)) == 5000 + 50
    assert charged(Usage(400, count)) == 400 + 10_000


def test_a_call_of_unknown_size_can_still_be_counted() -> None:
    budget = Budget(SpendingLimits())
    for tokens in (0, 10**30):
        spending = CallSpending(budget, tokens, tokens)
        spending.reserve(CLOUD).settle(Usage(10**40, 10**40), 9)
        spending.settle()
    assert budget.spent().tokens >= 2 * 10**12


@given(
    st.lists(
        st.tuples(st.none() | st.integers() | st.floats(), st.none() | st.integers() | st.floats()),
        max_size=20,
    )
)
def test_no_report_lowers_what_others_spent(reports: list[tuple[Any, Any]]) -> None:
    budget = Budget(SpendingLimits())
    spent = 0
    for prompt, output in reports:
        spending = CallSpending(budget, 10, 10)
        usage = None if prompt is None or output is None else Usage(prompt, output)
        spending.reserve(CLOUD).settle(usage, 9)
        spending.settle()
        # At least a token, and at most ten times as many as were reserved.
        assert 1 <= budget.spent().tokens - spent <= 200
        spent = budget.spent().tokens


def test_a_clock_that_goes_back_frees_nothing_and_holds_nothing_for_longer() -> None:
    clock = Clock()
    budget = Budget(SpendingLimits(tokens_per_day=10), clock=clock)
    start = clock.now
    budget.reserve(Cost(tokens=10))
    for moved in (-1, -HOUR, -2 * DAY, -400 * DAY):
        clock.now = start + moved
        with pytest.raises(BudgetExceeded) as raised:
            budget.reserve(Cost(tokens=1))
        assert raised.value.free_in is not None
        assert raised.value.free_in <= DAY
    # A day later by the clock as it goes now, not when it is where it was.
    clock.now += DAY - 1
    with pytest.raises(BudgetExceeded):
        budget.reserve(Cost(tokens=1))
    clock.now += 1
    budget.reserve(Cost(tokens=10))


@pytest.mark.parametrize("back", [60.0, DAY, 400 * DAY])
def test_a_clock_that_goes_back_and_forth_gives_no_second_day(back: float) -> None:
    clock = Clock()
    budget = Budget(SpendingLimits(tokens_per_day=10), clock=clock)
    budget.reserve(Cost(tokens=10))
    right = clock.now
    for _ in range(3):
        clock.now = right - back
        with pytest.raises(BudgetExceeded):
            budget.reserve(Cost(tokens=1))
        right += 600
        clock.now = right
        with pytest.raises(BudgetExceeded):
            budget.reserve(Cost(tokens=1))
    clock.now = right + DAY
    budget.reserve(Cost(tokens=10))


def test_a_clock_that_was_ahead_when_the_file_was_written(tmp_path: Path) -> None:
    path, clock = tmp_path / "b.sqlite", Clock()
    clock.now += 300 * DAY
    Budget(SpendingLimits(tokens_per_day=10), path, clock=clock).reserve(Cost(tokens=10))
    # As a version left it that knew no such clock.
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE budget_clock")
    database.close()
    clock.now -= 300 * DAY
    budget = Budget(SpendingLimits(tokens_per_day=10), path, clock=clock)
    with pytest.raises(BudgetExceeded):
        budget.reserve(Cost(tokens=1))
    clock.now += DAY
    budget.reserve(Cost(tokens=10))


_WITH_ANOTHER_CLOCK = """
import sys, time
from edgesdk.errors import BudgetExceeded
from edgesdk.hybrid.cloud.spending import Budget, Cost, SpendingLimits
ahead = float(sys.argv[2])
budget = Budget(SpendingLimits(tokens_per_day=100), sys.argv[1], clock=lambda: time.time() + ahead)
won = 0
for _ in range(20):
    try:
        budget.reserve(Cost(tokens=10))
        won += 1
    except BudgetExceeded:
        pass
print(won)
"""


def test_processes_whose_clock_was_set_back_share_one_day(tmp_path: Path) -> None:
    path = str(tmp_path / "b.sqlite")
    ahead = (0.0, -3600.0, -200_000.0, 30.0)
    assert [run_python(_WITH_ANOTHER_CLOCK, path, str(by)) for by in ahead] == [10, 0, 0, 0]


@pytest.mark.parametrize("limit", ["money_per_call", "money_per_hour", "money_per_day"])
@pytest.mark.parametrize("prices", [{}, {"input_price": 1.0}, {"output_price": 1.0}])
def test_a_limit_of_money_needs_every_price(limit: str, prices: dict[str, float]) -> None:
    unpriced = Cloud("https://x.example/v1", "dear", **prices)  # type: ignore[arg-type]
    limits = SpendingLimits(**{limit: 1.0})
    with pytest.raises(InvalidOption, match=r"prices of dear at x\.example.*input_price and"):
        limits.check_prices([CLOUD, unpriced])
    limits.check_prices([CLOUD, Cloud("https://x.example/v1", "m", input_price=0, output_price=0)])
    SpendingLimits(tokens_per_day=1).check_prices([unpriced])


def test_a_client_refuses_a_limit_of_money_that_would_count_nothing() -> None:
    budget = Budget(SpendingLimits(money_per_day=1.0))
    with fake_model() as model:
        with pytest.raises(InvalidOption, match="needs the prices of big"):
            HybridClient(model, cloud=Cloud("https://x.example/v1", "big"), budget=budget)
        # Presets whose prices no package knows.
        for name in ("deepinfra", "qwen", "siliconflow", "ppio"):
            there = Cloud.preset(name, "big", "sk-key-of-a-test")
            with pytest.raises(InvalidOption, match="Give input_price and output_price"):
                HybridClient(model, cloud=there, budget=budget)
        # One's own machine costs nothing.
        HybridClient(model, cloud=Cloud("ollama:llama3.2"), budget=budget).close()
