"""A second endpoint is asked where the first is slow to begin; one of the two answers."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

import pytest
from support.fake_engine import fake_model
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
)
from support.waiting import until

from edgesdk.errors import CloudBusy, DeadlineExceeded, InvalidOption
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.cloud_reply import CloudEvent, CloudReply, Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Budget, CallSpending, Cost, SpendingLimits
from edgesdk.system.cancellation import CancellationToken

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
GOOD = answer("Hel", "lo")
SOON, NEVER = 0.05, 60.0


class Silent:
    """Takes a request, begins no answer, and hears when the client hangs up."""

    def __init__(self, head: bytes = HEAD) -> None:
        self._head = head
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.asked = threading.Event()
        self.left = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(self._head)
                self.asked.set()
                while connection.recv(65_536):
                    pass
        except OSError:
            pass
        self.left.set()

    def __enter__(self) -> Silent:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(20)


def client_of(*urls: str, hedge_after: float | None) -> CloudClient:
    return CloudClient([Cloud(url, "m") for url in urls], hedge_after=hedge_after)


def ask(client: CloudClient, deadline: float = 60.0) -> tuple[list[CloudEvent], CloudReply]:
    stream = client.stream(BODY, cancellation=CancellationToken(deadline))
    return list(stream), stream.reply


def keys(server: ScriptedServer) -> list[bytes]:
    return [
        line
        for request in server.requests
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"idempotency-key")
    ]


@pytest.mark.parametrize(
    "head", [b"", HEAD, HEAD + b": thinking\n\n", HEAD + chunk(role="assistant")]
)
def test_the_next_endpoint_answers_where_the_first_does_not_begin(head: bytes) -> None:
    with (
        Silent(head) as slow,
        ScriptedServer([GOOD]) as fast,
        client_of(slow.url, fast.url, hedge_after=SOON) as client,
    ):
        events, found = ask(client)
        # The other is closed at the latest when the answer is whole.
        assert slow.left.wait(20)
    assert [one.text for one in events if isinstance(one, TextDelta)] == ["Hel", "lo"]
    assert not any(isinstance(one, Restart) for one in events)
    assert (found.text, found.attempts) == ("Hello", 2)
    assert found.endpoint == Cloud(fast.url, "m").name


def test_both_get_the_same_request() -> None:
    slow: Script = [Wait(30)]
    with ScriptedServer([slow]) as first, ScriptedServer([GOOD]) as second:
        with client_of(first.url, second.url, hedge_after=SOON) as client:
            ask(client)
            ask(client)
        assert first.bodies() == second.bodies()
        assert keys(first) == keys(second)
        assert len(set(keys(first))) == 2


def test_without_need_no_second_request_is_sent() -> None:
    with ScriptedServer([GOOD]) as first, ScriptedServer([GOOD]) as second:
        for hedge_after in (None, NEVER):
            with client_of(first.url, second.url, hedge_after=hedge_after) as client:
                assert ask(client)[1].attempts == 1
        assert second.requests == []


def test_one_endpoint_has_nobody_beside_it() -> None:
    with ScriptedServer([[Wait(0.5), *GOOD]]) as server:
        with client_of(server.url, hedge_after=0.0) as client:
            assert ask(client)[1].text == "Hello"
        assert len(server.requests) == 1


def called(city: str) -> Script:
    """A tool call in two pieces."""
    head, rest = f'{{"city": "{city}', '"}'
    function = {"name": f"in_{city}", "arguments": head}
    return [
        HEAD,
        chunk(tool_calls=[{"index": 0, "id": f"id_{city}", "function": function}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": rest}}]),
        chunk(finish="tool_calls"),
        event("[DONE]"),
    ]


def test_calls_and_texts_of_two_are_never_mixed() -> None:
    with (
        ScriptedServer([called("rome")]) as first,
        ScriptedServer([called("oslo")]) as second,
        client_of(first.url, second.url, hedge_after=0.0) as client,
    ):
        for _ in range(20):
            (call,) = ask(client)[1].calls
            city = call.name.removeprefix("in_")
            assert (call.id, call.arguments) == (f"id_{city}", {"city": city})


@pytest.mark.parametrize("fault", [[Wait(0.3), Reset()], [Wait(0.3), *status("500 Oops")]])
def test_of_two_the_one_that_works(fault: Script) -> None:
    late: Script = [Wait(0.6), *GOOD]
    for scripts in ((fault, late), (late, fault)):
        with ScriptedServer([scripts[0]]) as first, ScriptedServer([scripts[1]]) as second:
            with client_of(first.url, second.url, hedge_after=SOON) as client:
                events, found = ask(client)
            assert found.text == "Hello"
            assert not any(isinstance(one, Restart) for one in events)


def test_where_both_fail_there_is_one_clear_error() -> None:
    with (
        ScriptedServer([[Wait(0.2), *status("500 Oops")]]) as first,
        ScriptedServer([[Wait(0.2), *status("503 Busy")]]) as second,
        client_of(first.url, second.url, hedge_after=SOON) as client,
        pytest.raises(CloudBusy),
    ):
        ask(client)


def test_one_that_breaks_off_after_it_won_is_started_over() -> None:
    with (
        Silent() as slow,
        ScriptedServer([[HEAD, chunk("He"), Reset()], GOOD]) as second,
        client_of(slow.url, second.url, hedge_after=SOON) as client,
    ):
        events, found = ask(client)
    assert found.text == "Hello"
    assert [getattr(one, "text", "restart") for one in events[:-1]] == [
        "He", "restart", "Hel", "lo",
    ]  # fmt: skip


def test_the_deadline_holds_for_both() -> None:
    with (
        Silent() as first,
        Silent() as second,
        client_of(first.url, second.url, hedge_after=SOON) as client,
    ):
        with pytest.raises(DeadlineExceeded):
            ask(client, deadline=1.0)
        assert first.left.wait(20)
        assert second.left.wait(20)


def test_leaving_ends_both_and_both_may_be_asked_again() -> None:
    scripts: list[Script] = [[Wait(30)], GOOD]
    with (
        ScriptedServer(scripts) as first,
        ScriptedServer(scripts) as second,
        client_of(first.url, second.url, hedge_after=SOON) as client,
    ):
        with client.stream(BODY):
            until(lambda: bool(first.requests and second.requests))
        assert ask(client)[1].text == "Hello"


def test_a_hedge_is_reserved_like_any_attempt() -> None:
    budget = Budget(SpendingLimits(tokens_per_day=250))
    with (
        Silent() as slow,
        ScriptedServer([GOOD]) as fast,
        client_of(slow.url, fast.url, hedge_after=SOON) as client,
    ):
        spending = CallSpending(budget, 10, 90)
        list(client.stream(BODY, spending=spending))
        spending.settle()
    # The first may have worked, and may charge for it.
    assert budget.spent().tokens == 105


def test_a_hedge_that_cannot_be_paid_is_not_sent() -> None:
    budget = Budget(SpendingLimits(tokens_per_day=199))
    with ScriptedServer([[Wait(0.5), *GOOD]]) as first, ScriptedServer([GOOD]) as second:
        with client_of(first.url, second.url, hedge_after=0.0) as client:
            spending = CallSpending(budget, 10, 90)
            stream = client.stream(BODY, spending=spending)
            assert [one.text for one in stream if isinstance(one, TextDelta)] == ["Hel", "lo"]
            assert stream.reply.attempts == 1
        assert second.requests == []


def test_a_hedge_that_fails_counts_against_its_endpoint() -> None:
    with (
        ScriptedServer([[Wait(0.3), *GOOD]]) as first,
        ScriptedServer([status("503 Busy")]) as second,
        client_of(first.url, second.url, hedge_after=0.0) as client,
    ):
        for _ in range(9):
            assert ask(client)[1].text == "Hello"
        # After three failures it rests; a few may have lost before they failed.
        assert 3 <= len(second.requests) < 9


def test_no_hedges_where_much_fails_already() -> None:
    with (
        ScriptedServer([status("503 Busy")]) as down,
        ScriptedServer([[Wait(0.3), *GOOD]]) as slow,
        ScriptedServer([GOOD]) as fast,
        client_of(*6 * [down.url], slow.url, fast.url, hedge_after=0.0) as client,
    ):
        assert ask(client)[1].text == "Hello"
        assert (len(slow.requests), len(fast.requests)) == (1, 0)


def test_the_hybrid_client_hedges_where_the_app_wants_it() -> None:
    budget = Budget(SpendingLimits(tokens_per_day=10_000))
    with Silent() as slow, ScriptedServer([GOOD]) as fast:
        clouds = [Cloud(slow.url, "m"), Cloud(fast.url, "m")]
        with HybridClient(fake_model(), cloud=clouds, budget=budget, hedge_after=SOON) as client:
            reply = client.respond("Hi", prefer="cloud", max_tokens=50)
    assert (reply.text, reply.route) == ("Hello", "cloud")
    # "user: Hi" and the marks around it, half as much again, and 50 tokens of answer.
    assert reply.cost == budget.spent() == Cost(0.0, 15 + 50 + 5)


def test_what_broke_off_is_part_of_the_cost_of_a_local_answer() -> None:
    budget = Budget(SpendingLimits(tokens_per_day=100))
    with ScriptedServer([[HEAD, event("{")]]) as server:
        with HybridClient(fake_model(), cloud=Cloud(server.url, "m"), budget=budget) as client:
            reply = client.respond("Hi", prefer="cloud", max_tokens=50)
        # A second attempt could not be paid.
        assert len(server.requests) == 1
    assert (reply.route, reply.low_confidence) == ("local", True)
    assert reply.cost == budget.spent() == Cost(0.0, 15 + 50)


def test_bad_delays() -> None:
    for delay in (-1.0, float("nan")):
        with pytest.raises(InvalidOption, match="hedge_after"):
            client_of("http://localhost/v1", hedge_after=delay)
