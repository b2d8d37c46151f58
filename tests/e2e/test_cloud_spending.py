"""Endpoints may charge for what broke off: no attempt is made that could not be paid."""

from __future__ import annotations

import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.other_process import run_python
from support.scripted_server import (
    HEAD,
    Reset,
    Script,
    ScriptedServer,
    Wait,
    answer,
    chunk,
    event,
    status,
    usage,
)

from edgesdk.errors import BudgetExceeded, CloudBusy, CloudError, CloudUnreachable
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.cloud_reply import CloudReply
from edgesdk.hybrid.cloud.endpoint import Cloud, Timeouts
from edgesdk.hybrid.cloud.spending import Budget, CallSpending, Cost, SpendingLimits
from edgesdk.system.cancellation import CancellationToken

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
# What one attempt may cost at most; a good answer of `answer` costs 3 tokens and one per piece.
WORST = 100
GOOD = answer("Hel", "lo")
BROKEN: Script = [HEAD, chunk("Hel"), Reset()]


def tokens(amount: int) -> Budget:
    return Budget(SpendingLimits(tokens_per_day=amount))


def ask(budget: Budget, *urls: str, timeouts: Timeouts | None = None) -> tuple[CloudReply, Cost]:
    clouds = [Cloud(url, "m", timeouts=timeouts or Timeouts(), output_price=1e6) for url in urls]
    spending = CallSpending(budget, 10, WORST - 10)
    with CloudClient(clouds) as client:
        stream = client.stream(BODY, cancellation=CancellationToken(60), spending=spending)
        try:
            for _ in stream:
                pass
        finally:
            spending.settle()
        return stream.reply, spending.cost


def nobody() -> str:
    """A base URL where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        return f"http://127.0.0.1:{there.getsockname()[1]}/v1"


def test_each_attempt_is_reserved_and_a_broken_one_stays_so() -> None:
    budget = tokens(2 * WORST)
    with ScriptedServer([BROKEN, GOOD]) as server:
        found, cost = ask(budget, server.url)
    assert (found.text, found.attempts) == ("Hello", 2)
    # 90 and 2 tokens of answers, which cost 1 each.
    assert cost == budget.spent() == Cost(92.0, WORST + 5)


def test_a_retry_that_cannot_be_paid_is_not_made() -> None:
    budget = tokens(2 * WORST - 1)
    with ScriptedServer([BROKEN, GOOD]) as server:
        found, cost = ask(budget, server.url)
        assert len(server.requests) == 1
    # What was given out stays: nothing better will come.
    assert (found.text, found.finish_reason, found.attempts) == ("Hel", "incomplete", 1)
    assert cost.tokens == budget.spent().tokens == WORST


def test_the_limits_of_a_call_are_those_of_all_its_attempts() -> None:
    budget = Budget(SpendingLimits(money_per_call=179.0))
    with ScriptedServer([BROKEN, GOOD]) as server:
        assert not ask(budget, server.url)[0].complete
    budget = Budget(SpendingLimits(money_per_call=180.0))
    with ScriptedServer([BROKEN, GOOD]) as server:
        assert ask(budget, server.url)[0].complete


def test_where_nobody_heard_the_request_nothing_is_owed() -> None:
    budget = tokens(WORST + 5)
    with ScriptedServer([GOOD]) as server:
        found, cost = ask(budget, nobody(), server.url)
    assert (found.attempts, cost.tokens, budget.spent().tokens) == (2, 5, 5)
    with pytest.raises(CloudUnreachable):
        ask(budget, nobody())
    assert budget.spent().tokens == 5


@pytest.mark.parametrize("line", ["400 No", "401 No", "429 Later", "500 Oops", "503 Busy"])
def test_an_endpoint_that_says_no_charges_nothing(line: str) -> None:
    budget = tokens(WORST)
    with ScriptedServer([status(line)]) as first, ScriptedServer([GOOD]) as second:
        found, cost = ask(budget, first.url, second.url)
    assert (found.attempts, cost.tokens, budget.spent().tokens) == (2, 5, 5)


@pytest.mark.parametrize(
    "script",
    [
        status("502 Bad Gateway"),
        status("504 Gateway Timeout"),
        [Reset()],
        [HEAD, Wait(30)],
        [Wait(30)],
        [HEAD, chunk(finish="stop"), event("{")],
    ],
    ids=["502", "504", "reset", "no token", "no head", "no chunk"],
)
def test_where_the_endpoint_may_have_worked_all_is_owed(script: Script) -> None:
    budget = tokens(WORST)
    short = Timeouts(first_token=0.5, connect=0.5)
    with ScriptedServer([script]) as server, ScriptedServer([GOOD]) as second:
        with pytest.raises(CloudError):
            ask(budget, server.url, second.url, timeouts=short)
        assert (len(server.requests), len(second.requests)) == (1, 0)
    assert budget.spent().tokens == WORST


@pytest.mark.parametrize(
    ("counted", "charged"),
    [
        (None, 12),
        ({"prompt_tokens": -1_000_000, "completion_tokens": -1_000_000}, 12),
        ({"prompt_tokens": 0, "completion_tokens": 0}, 12),
        ({"prompt_tokens": 1e300, "completion_tokens": "many"}, 12),
        ({"prompt_tokens": 3, "completion_tokens": 2}, 5),
        ({"prompt_tokens": 10**7, "completion_tokens": 10**7}, 10 * WORST),
    ],
)
def test_what_an_endpoint_counts_neither_refills_nor_empties_a_budget(
    counted: dict[str, Any] | None, charged: int
) -> None:
    counts = [] if counted is None else [event({"choices": [], "usage": counted})]
    script = [HEAD, chunk("Hello"), chunk(finish="stop"), *counts, event("[DONE]")]
    budget = tokens(5 * WORST)
    before = budget.reserve(Cost(tokens=7))
    with ScriptedServer([script]) as server:
        found, cost = ask(budget, server.url)
    before.settle(Cost(tokens=7))
    assert found.text == "Hello"
    # Of a prompt of at most 10 tokens and 5 bytes of answer, where nothing else is known.
    assert cost.tokens == budget.spent().tokens - 7 == charged


def test_a_call_that_cannot_be_paid_is_not_sent() -> None:
    with ScriptedServer([GOOD]) as server:
        with pytest.raises(BudgetExceeded):
            ask(tokens(WORST - 1), server.url)
        assert server.requests == []


def test_a_cheaper_endpoint_may_still_be_paid() -> None:
    budget = Budget(SpendingLimits(money_per_day=50.0))
    with ScriptedServer([GOOD]) as dear, ScriptedServer([GOOD]) as cheap:
        clouds = [Cloud(dear.url, "m", output_price=1e6), Cloud(cheap.url, "m")]
        with CloudClient(clouds) as client:
            stream = client.stream(BODY, spending=CallSpending(budget, 10, 90))
            assert len(list(stream)) == 3
            assert stream.reply.endpoint == clouds[1].name
        assert dear.requests == []


def test_a_budget_that_cannot_be_read_lets_nothing_out(tmp_path: Path) -> None:
    budget = Budget(SpendingLimits(), tmp_path / "b")
    budget.close()
    with ScriptedServer([GOOD]) as server:
        with pytest.raises(BudgetExceeded, match="not known"):
            ask(budget, server.url)
        assert server.requests == []


class Charging(ScriptedServer):
    """Breaks off as often as not, and charges for what it did: all that it may, or what it says."""

    def __init__(self, seed: int) -> None:
        super().__init__([[]])
        self._chance = random.Random(seed)
        self._counting = threading.Lock()
        self.bill = 0

    def answer_to(self, request: bytes) -> Script:
        with self._counting:
            kind = self._chance.choice(["whole", "cut", "reset", "garbage", "busy", "gateway"])
            self.bill += {"whole": 30, "busy": 0}.get(kind, WORST)
        return {
            "whole": [HEAD, chunk("ok"), chunk(finish="stop"), usage(10, 20), event("[DONE]")],
            "cut": [HEAD, chunk("o")],
            "reset": [HEAD, chunk("o"), Reset()],
            "garbage": [HEAD, chunk("o"), event("{")],
            "busy": status("503 Busy"),
            "gateway": status("504 Gateway Timeout"),
        }[kind]


@pytest.mark.parametrize("seed", range(3))
def test_eight_callers_of_endpoints_that_break_off_never_overspend(
    tmp_path: Path, seed: int
) -> None:
    limit = 20 * WORST

    def call(number: int) -> None:
        budget = Budget(SpendingLimits(tokens_per_day=limit), tmp_path / "b")
        for _ in range(6):
            try:
                ask(budget, first.url, second.url)
            except (CloudError, BudgetExceeded):
                continue

    with Charging(seed) as first, Charging(seed + 100) as second:
        with ThreadPoolExecutor(8) as callers:
            list(callers.map(call, range(8)))
        charged = first.bill + second.bill
    known = Budget(SpendingLimits(), tmp_path / "b").spent().tokens
    assert charged == known <= limit
    assert known > limit / 2


def test_a_busy_endpoint_says_so_after_the_money_is_gone() -> None:
    budget = tokens(WORST)
    scripts = [status("504 Gateway Timeout"), GOOD]
    with ScriptedServer(scripts) as server, pytest.raises(CloudBusy, match="504"):
        ask(budget, server.url)


_SPENDER = """
import sys
from pathlib import Path
from edgesdk.errors import BudgetExceeded
from edgesdk.hybrid.cloud.spending import Budget
from edgesdk.hybrid.cloud.spending import Cost, SpendingLimits
budget = Budget(SpendingLimits(tokens_per_day=1000), Path(sys.argv[1]))
won = 0
for _ in range(60):
    try:
        budget.reserve(Cost(tokens=13)).settle(Cost(tokens=12))
        won += 1
    except BudgetExceeded:
        pass
print(won)
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "b.sqlite"
    with ThreadPoolExecutor(2) as both:
        won = sum(both.map(lambda _: run_python(_SPENDER, str(path)), range(2)))
    # 82 calls leave 16 of the 1,000 tokens, which is enough for one more, and no more after it.
    assert won == 83
    assert Budget(SpendingLimits(), path).spent().tokens == 12 * won <= 1000
