"""Every way in which a network or an endpoint fails, over real sockets.

Each ends in the right answer, an honest partial one, or a clear error, before the deadline.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
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
from support.self_signed import self_signed_context

from edgesdk.errors import (
    CloudBroken,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    DeadlineExceeded,
)
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.cloud_reply import (
    CloudEvent,
    CloudReply,
    Restart,
    TextDelta,
)
from edgesdk.hybrid.cloud.endpoint import Cloud, Timeouts
from edgesdk.hybrid.cloud.failover import OnBreak
from edgesdk.reply import ReasoningDelta
from edgesdk.system.cancellation import CancellationToken

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

BODY = {"messages": [{"role": "user", "content": "Hi"}]}
# Only where a fault is one of time; the good answers of other tests may take what they need.
SHORT = Timeouts(connect=2.0, first_token=1.0, between_tokens=1.0)
SLOW = ("slow first token", "slow head", "trickled comments", "stall", "trickled bytes")
KEY = "sk-test-0123456789"
GOOD = answer("Hel", "lo")


def cloud(url: str, *, timeouts: Timeouts | None = None) -> Cloud:
    return Cloud(url, "m", KEY, timeouts=timeouts or Timeouts())


def timeouts_of(fault: str) -> Timeouts | None:
    return SHORT if fault in SLOW else None


def ask(
    *clouds: Cloud, on_break: OnBreak = "restart", deadline: float | None = 60.0
) -> tuple[list[CloudEvent], CloudReply]:
    with CloudClient(clouds, on_break=on_break) as client:
        stream = client.stream(BODY, cancellation=CancellationToken(deadline))
        events = list(stream)
        return events, stream.reply


def shown(events: list[CloudEvent]) -> str:
    """What an app has on its screen at the end."""
    text = ""
    for one in events:
        if isinstance(one, Restart):
            text = ""
        elif isinstance(one, TextDelta):
            text += one.text
    return text


def test_a_good_answer() -> None:
    with ScriptedServer([GOOD]) as server:
        events, found = ask(cloud(server.url))
    assert shown(events) == found.text == "Hello"
    assert (found.finish_reason, found.attempts, found.complete) == ("stop", 1, True)
    assert found.usage is not None
    assert found.usage.completion_tokens == 2
    (request,) = server.bodies()
    assert request["stream"] is True
    assert request["stream_options"] == {"include_usage": True}
    assert f"Authorization: Bearer {KEY}".encode() in server.requests[0]


BEFORE_THE_FIRST_PIECE: dict[str, Script] = {
    "reset": [Reset()],
    "closed": [],
    "500": status("500 Oops", {"error": {"message": "boom"}}),
    "503 with html": status("503 Busy", b"<html>busy</html>", Content_Type="text/html"),
    "408": status("408 Slow"),
    "409": status("409 Conflict"),
    "429": status("429 Too Many"),
    "429 with a time": status("429 Too Many", Retry_After="0"),
    "429 with a date": status("429 Too Many", Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "html": [HEAD.replace(b"text/event-stream", b"text/html"), b"<html>hello</html>"],
    "json": status("200 OK", {"result": "Hello"}),
    "empty": status("200 OK", b""),
    "slow first token": [HEAD, Wait(30), *GOOD[1:]],
    "slow head": [Wait(30), *GOOD],
    "trickled comments": [HEAD, *[b": wait\n\n", Wait(0.1)] * 300, *GOOD[1:]],
    "in-band error": [HEAD, event({"error": {"message": "overloaded"}})],
    "corrupt chunk": [HEAD, b'data: {"choices": [{"del\n\n', event("[DONE]")],
    "chunk of another kind": [HEAD, event({"choices": "none"}), event("[DONE]")],
    "no utf-8": [HEAD, b"data: \xff\xfe\n\n"],
    "no finish": [HEAD, event("[DONE]")],
    "bad http": [b"SMTP ready\r\n\r\n"],
}


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_PIECE)
def test_what_fails_before_the_first_piece_is_never_seen(name: str) -> None:
    with ScriptedServer([BEFORE_THE_FIRST_PIECE[name], GOOD]) as server:
        events, found = ask(cloud(server.url, timeouts=timeouts_of(name)))
    assert [one for one in events if isinstance(one, Restart)] == []
    assert (shown(events), found.attempts) == ("Hello", 2)
    keys = {
        line
        for request in server.requests
        for line in request.split(b"\r\n")
        if line.lower().startswith(b"idempotency-key")
    }
    assert len(keys) == 1


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_PIECE)
def test_the_next_endpoint_takes_over(name: str) -> None:
    with ScriptedServer([BEFORE_THE_FIRST_PIECE[name]]) as bad, ScriptedServer([GOOD]) as good:
        events, found = ask(cloud(bad.url, timeouts=timeouts_of(name)), cloud(good.url))
    assert (shown(events), found.attempts) == ("Hello", 2)
    assert str(good.port) in found.endpoint


AFTER_THE_FIRST_PIECE: dict[str, Script] = {
    "cut": [HEAD, chunk("Hel"), Reset()],
    "silent truncation": [HEAD, chunk("Hel")],
    "stall": [HEAD, chunk("Hel"), Wait(30)],
    "trickled bytes": [HEAD, chunk("Hel"), *[b":", Wait(0.1)] * 300],
    "in-band error": [HEAD, chunk("Hel"), event({"error": "overloaded"})],
    "corrupt chunk": [HEAD, chunk("Hel"), b"data: {]\n\n", *GOOD[2:]],
    "more after the finish": [HEAD, chunk("Hel"), chunk(finish="stop"), chunk("lo")],
    "half a tool call": [
        HEAD,
        chunk("Hel"),
        chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x'}}]),
        chunk(finish="tool_calls"),
        event("[DONE]"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", AFTER_THE_FIRST_PIECE)
def test_an_answer_that_breaks_off_starts_again(name: str) -> None:
    with ScriptedServer([AFTER_THE_FIRST_PIECE[name], GOOD]) as server:
        events, found = ask(cloud(server.url, timeouts=timeouts_of(name)))
    assert sum(isinstance(one, Restart) for one in events) == 1
    assert (shown(events), found.text, found.complete) == ("Hello", "Hello", True)


AFTER_A_WHOLE_ANSWER: dict[str, Script] = {
    "nothing": [],
    "reset": [Reset()],
    "stall": [Wait(30)],
    "in-band error": [event({"error": "overloaded"})],
    "corrupt chunk": [b"data: {]\n\n"],
    "no utf-8": [b"data: \xff\n\n"],
}


@pytest.mark.parametrize("name", AFTER_A_WHOLE_ANSWER)
def test_a_whole_answer_is_not_paid_for_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesdk.hybrid.cloud.attempt._USAGE_SECONDS", 0.2)
    script = [HEAD, chunk("Hel"), chunk("lo"), chunk(finish="stop"), *AFTER_A_WHOLE_ANSWER[name]]
    with ScriptedServer([script, GOOD]) as server:
        events, found = ask(cloud(server.url))
        assert len(server.requests) == 1
    assert (shown(events), found.finish_reason, found.complete) == ("Hello", "stop", True)


def test_the_word_for_the_end_is_enough_of_an_end() -> None:
    with ScriptedServer([[HEAD, chunk("Hello"), event("[DONE]")], GOOD]) as server:
        _, found = ask(cloud(server.url))
        assert len(server.requests) == 1
    assert (found.text, found.finish_reason) == ("Hello", "stop")


@pytest.mark.parametrize("name", AFTER_THE_FIRST_PIECE)
def test_or_ends_as_incomplete_where_the_app_wants_that(name: str) -> None:
    with ScriptedServer([AFTER_THE_FIRST_PIECE[name], GOOD]) as server:
        events, found = ask(cloud(server.url, timeouts=timeouts_of(name)), on_break="incomplete")
    assert shown(events) == found.text
    assert found.text.startswith("Hel")
    assert (found.finish_reason, found.complete, found.calls) == ("incomplete", False, ())


@pytest.mark.parametrize("name", AFTER_THE_FIRST_PIECE)
def test_when_no_attempt_succeeds_what_there_is_says_so(name: str) -> None:
    with ScriptedServer([AFTER_THE_FIRST_PIECE[name]]) as server:
        events, found = ask(cloud(server.url, timeouts=timeouts_of(name)), deadline=30.0)
    assert (found.complete, found.attempts) == (False, 3)
    assert shown(events) == found.text


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        (status("401 No", {"error": {"message": "bad key"}}), CloudRefused, "401: bad key"),
        (status("400 No", {"error": {"message": "bad model"}}), CloudRefused, "400: bad model"),
        (status("404 No", b"nothing here", Content_Type="text/plain"), CloudRefused, "404"),
    ],
)
def test_a_refusal_is_not_asked_again(script: Script, error: type[CloudError], said: str) -> None:
    with ScriptedServer([script, GOOD]) as server, pytest.raises(error, match=said) as raised:
        ask(cloud(server.url))
    assert len(server.requests) == 1
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (BEFORE_THE_FIRST_PIECE["500"], CloudBusy),
        (BEFORE_THE_FIRST_PIECE["html"], CloudBroken),
        (BEFORE_THE_FIRST_PIECE["closed"], CloudUnreachable),
    ],
)
def test_after_three_attempts_the_last_error_comes_out(
    script: Script, error: type[CloudError]
) -> None:
    with ScriptedServer([script]) as server, pytest.raises(error):
        ask(cloud(server.url))
    assert len(server.requests) == 3


def test_a_long_retry_after_is_not_waited_for() -> None:
    busy = status("429 Too Many", Retry_After="3600")
    with ScriptedServer([busy]) as server, pytest.raises(CloudBusy) as raised:
        ask(cloud(server.url), deadline=None)
    assert raised.value.retry_after == 3600
    assert len(server.requests) == 1


def test_redirects_get_neither_key_nor_prompt() -> None:
    with ScriptedServer([GOOD]) as elsewhere:
        moved = status("307 Moved", Location=f"{elsewhere.url}/chat/completions")
        with ScriptedServer([moved]) as server, pytest.raises(CloudRefused, match="redirects"):
            ask(cloud(server.url))
        assert elsewhere.requests == []


def test_a_refused_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CloudUnreachable, match="cannot be reached"):
        ask(cloud(f"http://127.0.0.1:{port}/v1"))


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(CloudUnreachable, match="cannot be reached"):
        ask(cloud("https://no-such-host.invalid/v1"))


def test_a_certificate_that_is_not_trusted() -> None:
    with (
        ScriptedServer([GOOD], tls=self_signed_context()) as server,
        pytest.raises(CloudUnreachable, match="certificate is not trusted"),
    ):
        ask(cloud(server.url))
    assert server.requests == []


def test_the_deadline_covers_all_attempts() -> None:
    timeouts = Timeouts(first_token=5, between_tokens=5)
    with ScriptedServer([[HEAD, Wait(30)]]) as server, pytest.raises(DeadlineExceeded):
        ask(cloud(server.url, timeouts=timeouts), deadline=0.5)


def test_the_deadline_leaves_what_there_is() -> None:
    timeouts = Timeouts(first_token=5, between_tokens=5)
    with ScriptedServer([[HEAD, chunk("Hel"), Wait(30)]]) as server:
        events, found = ask(cloud(server.url, timeouts=timeouts), deadline=0.5)
    assert (shown(events), found.finish_reason, found.complete) == ("Hel", "deadline", False)


def test_an_endpoint_that_keeps_failing_is_left_alone() -> None:
    with ScriptedServer([BEFORE_THE_FIRST_PIECE["500"]]) as server:
        with CloudClient([cloud(server.url)]) as client:
            with pytest.raises(CloudBusy):
                list(client.stream(BODY))
            with pytest.raises(CloudUnreachable, match=r"left alone.*500"):
                list(client.stream(BODY))
        assert len(server.requests) == 3


def test_one_request_tries_whether_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgesdk.hybrid.cloud.endpoint_state._MIN_OPEN_SECONDS", 0.2)
    busy = BEFORE_THE_FIRST_PIECE["500"]
    slow: Script = [HEAD, Wait(0.4), *GOOD[1:]]
    with ScriptedServer([busy, busy, busy, slow, GOOD]) as server:
        with CloudClient([cloud(server.url)]) as client:
            with pytest.raises(CloudBusy):
                list(client.stream(BODY))
            time.sleep(0.3)
            probe = client.stream(BODY)
            while len(server.requests) < 4:
                time.sleep(0.01)
            with pytest.raises(CloudUnreachable, match="left alone"):
                list(client.stream(BODY))
            assert shown(list(probe)) == "Hello"
            assert shown(list(client.stream(BODY))) == "Hello"
        assert len(server.requests) == 5


def test_an_endpoint_in_cooldown_is_skipped() -> None:
    busy = status("429 Too Many", Retry_After="20")
    with ScriptedServer([busy]) as first, ScriptedServer([GOOD]) as second:
        with CloudClient([cloud(first.url), cloud(second.url)]) as client:
            for _ in range(3):
                assert shown(list(client.stream(BODY))) == "Hello"
        assert (len(first.requests), len(second.requests)) == (1, 3)


def test_closing_a_stream_ends_the_request() -> None:
    with (
        ScriptedServer([[HEAD, chunk("Hel"), Wait(30)]]) as server,
        CloudClient([cloud(server.url, timeouts=Timeouts())]) as client,
    ):
        stream = client.stream(BODY)
        assert next(stream) == TextDelta("Hel")
        threading.Timer(0.1, stream.close).start()
        assert list(stream) == []


def test_reasoning_and_tool_calls_arrive_whole() -> None:
    script: Script = [
        HEAD,
        chunk(reasoning_content="Hm"),
        chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"x": '}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        chunk(finish="tool_calls"),
        event("[DONE]"),
    ]
    with ScriptedServer([script]) as server:
        events, found = ask(cloud(server.url))
    assert events[0] == ReasoningDelta("Hm")
    assert [(call.id, call.name, call.arguments) for call in found.calls] == [
        ("a", "f", {"x": 1}),
        ("b", "g", {}),
    ]


@pytest.fixture
def cut_everywhere() -> Iterator[ScriptedServer]:
    head, *rest = GOOD
    data = b"".join(rest)  # type: ignore[arg-type]
    steps: Script = [head]
    for at in range(0, len(data), 3):
        steps += [data[at : at + 3]]
    with ScriptedServer([steps]) as server:
        yield server


def test_bytes_may_be_cut_anywhere(cut_everywhere: ScriptedServer) -> None:
    events, _ = ask(cloud(cut_everywhere.url))
    assert shown(events) == "Hello"
