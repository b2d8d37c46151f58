"""The ways in which an endpoint fails, each with another endpoint behind it, over real sockets.

Each asks with a deadline and the default limits: the answer is whole, comes in time, and is paid
for once. The deadline is a fifth of the fifteen seconds that apps give; the limits follow from it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

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
from support.self_signed import certificate, self_signed_context
from support.talking_cloud import TalkingCloud

from edgesdk.errors import CloudBusy, CloudError
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud import endpoint_state
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.cloud_reply import CloudReply, Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.system.cancellation import CancellationToken

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
DEADLINE = 3.0
GOOD = answer("Hel", "lo")
OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
QUOTA = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}


def scripted(*script: object) -> Callable[[ExitStack], str]:
    """A server that does this to every request."""

    def start(stack: ExitStack) -> str:
        return stack.enter_context(ScriptedServer([list(script)])).url  # type: ignore[arg-type]

    return start


def _refused(stack: ExitStack) -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


def _untrusted(stack: ExitStack) -> str:
    return stack.enter_context(ScriptedServer([GOOD], tls=self_signed_context())).url


def _no_handshake(stack: ExitStack) -> str:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"https://127.0.0.1:{listener.getsockname()[1]}/v1"


SCENARIOS: dict[str, Callable[[ExitStack], str]] = {
    "connection refused": _refused,
    "no such host": lambda stack: "https://no-such-host.invalid/v1",
    "certificate not trusted": _untrusted,
    "no TLS handshake": _no_handshake,
    "slow headers": scripted(Wait(60)),
    "slow first token": scripted(HEAD, Wait(60)),
    "comments in place of tokens": scripted(HEAD, *[b": wait\n\n", Wait(0.1)] * 300),
    "stall under way": scripted(HEAD, chunk("He"), Wait(60)),
    "reset under way": scripted(HEAD, chunk("He"), Reset()),
    "closed before an answer": scripted(),
    "truncated": scripted(HEAD, chunk("He")),
    "429": scripted(*status("429 Too Many")),
    "429 with Retry-After": scripted(*status("429 Too Many", Retry_After="30")),
    "quota": scripted(*status("429 Too Many", QUOTA)),
    "500": scripted(*status("500 Oops")),
    "502 with HTML": scripted(*status("502 Bad", b"<html/>", Content_Type="text/html")),
    "503": scripted(*status("503 Unavailable")),
    "529": scripted(*status("529 Overloaded", OVERLOADED)),
    "401": scripted(*status("401 Unauthorized", {"error": {"message": "bad key"}})),
    "403": scripted(*status("403 Forbidden")),
    "404": scripted(*status("404 Not Found", {"error": {"message": "no such model"}})),
    "malformed events": scripted(HEAD, chunk("He"), b"data: {]\n\n", *GOOD[2:]),
    "empty": scripted(*status("200 OK", b"")),
    "HTML in place of a stream": scripted(
        HEAD.replace(b"text/event-stream", b"text/html"), b"<html>log in</html>"
    ),
    "overloaded in a good stream": scripted(HEAD, event(OVERLOADED)),
    "overloaded under way": scripted(HEAD, chunk("He"), event(OVERLOADED)),
}


def ask(client: CloudClient, deadline: float | None = DEADLINE) -> tuple[str, CloudReply]:
    """Return what an app has on its screen at the end, and the reply."""
    shown = ""
    stream = client.stream(BODY, cancellation=CancellationToken(deadline))
    for one in stream:
        if isinstance(one, Restart):
            shown = ""
        elif isinstance(one, TextDelta):
            shown += one.text
    return shown, stream.reply


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_next_endpoint_answers_within_the_deadline(name: str) -> None:
    with ExitStack() as stack:
        bad = SCENARIOS[name](stack)
        good = stack.enter_context(ScriptedServer([GOOD]))
        client = stack.enter_context(CloudClient([Cloud(bad, "m"), Cloud(good.url, "m")]))
        shown, found = ask(client)
        # Once, and only there.
        assert len(good.requests) == 1
        assert (shown, found.text, found.finish_reason) == ("Hello", "Hello", "stop")
        assert str(good.port) in found.endpoint
        (failure,) = found.failures
        assert failure.endpoint == Cloud(bad, "m").name
        assert failure.message


@pytest.mark.parametrize("name", SCENARIOS)
def test_where_nobody_else_can_be_asked_nothing_is_taken_for_an_answer(name: str) -> None:
    with ExitStack() as stack:
        bad = SCENARIOS[name](stack)
        client = stack.enter_context(CloudClient([Cloud(bad, "m")]))
        try:
            shown, found = ask(client, deadline=0.6)
        except (CloudError, TimeoutError):
            return
        assert (found.complete, shown) == (False, found.text)


def test_the_device_has_time_left_where_no_endpoint_answers() -> None:
    with (
        ScriptedServer([[Wait(60)]]) as first,
        ScriptedServer([[HEAD, Wait(60)]]) as second,
        HybridClient(fake_model(), cloud=[Cloud(first.url, "m"), Cloud(second.url, "m")]) as client,
    ):
        reply = client.respond("Hi", prefer="cloud", deadline=DEADLINE)
    assert (reply.route, bool(reply.text)) == ("local", True)
    assert [one.kind for one in reply.receipt.failures][:2] == ["unreachable", "unreachable"]


def test_why_an_endpoint_refused_reaches_the_app() -> None:
    refusal = {"error": {"message": "no such model: m", "code": "model_not_found"}}
    with (
        ScriptedServer([status("404 Not Found", refusal)]) as server,
        HybridClient(fake_model(), cloud=Cloud(server.url, "m", "sk-key")) as client,
    ):
        receipt = client.respond("Hi", prefer="cloud").receipt
        (failure,) = receipt.failures
    assert (failure.kind, failure.status, failure.code) == ("refused", 404, "model_not_found")
    assert failure.message == "no such model: m"
    assert receipt.attempts == 1
    assert "refused (404 model_not_found)" in receipt.reason


@pytest.mark.parametrize("key", [None, "sk-key"])
def test_after_another_answered_the_app_knows_why_the_first_did_not(key: str | None) -> None:
    with (
        ScriptedServer([status("529 Overloaded", OVERLOADED)]) as first,
        ScriptedServer([GOOD]) as second,
        HybridClient(
            fake_model(), cloud=[Cloud(first.url, "a", key), Cloud(second.url, "b", key)]
        ) as client,
    ):
        receipt = client.respond("Hi", prefer="cloud").receipt
    assert (receipt.route, receipt.attempts) == ("cloud", 2)
    assert [(one.status, one.code) for one in receipt.failures] == [(529, "overloaded_error")]


def test_all_down_is_one_clear_error_with_all_reasons() -> None:
    with (
        ScriptedServer([status("503 Busy", {"error": {"message": "later"}})]) as first,
        ScriptedServer([status("429 Too Many", QUOTA)]) as second,
        CloudClient([Cloud(first.url, "a"), Cloud(second.url, "b")]) as client,
        pytest.raises(CloudBusy) as raised,
    ):
        ask(client)
    reasons = [(one.kind, one.status, one.code) for one in raised.value.attempts]
    assert reasons[:2] == [("busy", 503, None), ("refused", 429, "insufficient_quota")]
    # What would refuse again is not asked again.
    assert [one.kind for one in raised.value.attempts[2:]] == ["busy", "busy"]


def test_a_flapping_endpoint_costs_no_answer() -> None:
    bad: Script = [HEAD, chunk("He"), Reset()]
    with (
        ScriptedServer([bad, GOOD, bad, bad, GOOD, bad, GOOD, bad, bad, bad, GOOD]) as first,
        ScriptedServer([GOOD]) as second,
        CloudClient([Cloud(first.url, "m"), Cloud(second.url, "m")]) as client,
    ):
        for _ in range(12):
            shown, found = ask(client)
            assert (shown, found.complete) == ("Hello", True)
            assert found.attempts <= 2


class Clock:
    """Stands in for the breakers' clock."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def switched(down: Script) -> Iterator[tuple[TalkingCloud, list[bool]]]:
    """An endpoint, and whether it is up."""
    up = [True]
    with TalkingCloud(lambda body: GOOD if up[0] else down) as server:
        yield server, up


@pytest.mark.parametrize("outage", [6, 36])
def test_after_an_outage_the_first_endpoint_is_back_within_ten_seconds(
    outage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(endpoint_state, "monotonic", clock)
    with (
        switched(status("503 Busy")) as (first, up),
        ScriptedServer([GOOD]) as second,
        CloudClient([first.cloud(), Cloud(second.url, "m")]) as client,
    ):
        name = first.cloud().name
        assert ask(client)[1].endpoint == name
        up[0] = False
        for _ in range(outage):
            clock.now += 1
            shown, found = ask(client)
            assert (shown, found.endpoint) == ("Hello", Cloud(second.url, "m").name)
        # Three to notice, and then one in five seconds at most.
        assert len(first.requests) - 1 <= 3 + 3 + outage / 5
        up[0] = True
        waited = 0
        while ask(client)[1].endpoint != name:
            clock.now += 1
            waited += 1
        assert waited <= 10


def test_trying_whether_a_silent_endpoint_is_back_takes_little_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(endpoint_state, "monotonic", clock)
    monkeypatch.setattr(endpoint_state, "_MIN_PROBE_SECONDS", 0.1)
    with (
        switched([Wait(60)]) as (first, up),
        ScriptedServer([GOOD]) as second,
        CloudClient([first.cloud(), Cloud(second.url, "m")]) as client,
    ):
        ask(client)
        up[0] = False
        for _ in range(3):
            ask(client, deadline=0.5)
        clock.now += 10
        started = time.monotonic()
        _, found = ask(client, deadline=None)
        # Without the limit it would be ten seconds.
        assert time.monotonic() - started < 5
        assert [failure.kind for failure in found.failures] == ["unreachable"]


def test_own_certificates_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    pem, _ = certificate()
    with ScriptedServer([GOOD], tls=self_signed_context()) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        trusting = ssl.create_default_context(cafile=str(pem))
        for verify in (pem, str(pem), trusting, False):
            with CloudClient([Cloud(url, "m", verify=verify)]) as client:
                assert ask(client)[0] == "Hello"
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        with CloudClient([Cloud(url, "m")]) as client:
            assert ask(client)[0] == "Hello"


def test_a_proxy_is_used_where_the_app_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer([GOOD]) as proxy:
        address = proxy.url.removesuffix("/v1")
        cloud = Cloud("http://localhost:9/v1", "m", "sk-key", proxy=address)
        with CloudClient([cloud]) as client:
            assert ask(client)[0] == "Hello"
        assert proxy.requests[0].startswith(b"POST http://localhost:9/v1/chat/completions ")
        # One of the environment is not.
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("ALL_PROXY", address)
        with ScriptedServer([GOOD]) as server:
            with CloudClient([Cloud(server.url, "m")]) as client:
                ask(client)
            assert len(server.requests) == 1
        assert len(proxy.requests) == 1


def test_own_headers_go_before_those_of_the_sdk() -> None:
    with ScriptedServer([GOOD]) as server:
        headers = {"api-key": "own", "authorization": "Basic abc", "X-Title": "App"}
        with CloudClient([Cloud(server.url, "m", "sk-key", headers=headers)]) as client:
            ask(client)
        lines = server.requests[0].lower().split(b"\r\n")
    assert {b"api-key: own", b"authorization: basic abc", b"x-title: app"} <= set(lines)
    assert b"sk-key" not in server.requests[0]
