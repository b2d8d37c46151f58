"""The device first, the cloud where it is worth it and allowed; over real sockets."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeEngine, fake_model
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

from edgesdk.errors import ContextOverflow, InvalidOption
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.cloud.spending import Budget, Cost, SpendingLimits
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.privacy.policy import Policy, UploadQuestion
from edgesdk.hybrid.storage.journal import Journal
from edgesdk.hybrid.stream import HybridEvent

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

# The fake engine's tokens have a probability of 0.39, and its answers that of all their tokens.
SURE, UNSURE = Confidence(threshold=0.0, abort_below=0.0), Confidence(threshold=0.5)
HOPELESS = Confidence(threshold=0.5, abort_below=0.45, decide_after=4)
LOCAL = b"I am not sure."
LONG = bytes(random.Random(0).choices(b"abcdefghijklmnop", k=500))


def cloud(server: ScriptedServer, **changes: Any) -> Cloud:
    return Cloud(server.url, "big", "sk-key", **changes)


def shown(events: Iterable[HybridEvent]) -> str:
    """What an app has on its screen at the end."""
    text = ""
    for one in events:
        text = "" if isinstance(one, Restart) else text + one.text
    return text


def no_socket(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("a socket was opened")


def test_a_sure_answer_stays_here() -> None:
    with ScriptedServer([answer("cloud")]) as server:
        with HybridClient(fake_model(), cloud=cloud(server), confidence=SURE) as client:
            reply = client.respond("Hi")
        assert server.requests == []
    assert (reply.text, reply.route, reply.low_confidence) == ("Hello there.", "local", False)
    assert reply.local is not None
    assert reply.local.confidence == pytest.approx(0.3935 ** len("Hello there. "), rel=0.01)


def test_an_unsure_answer_is_replaced() -> None:
    model = fake_model(FakeEngine(LOCAL))
    with ScriptedServer([answer("The ", "answer.")]) as server:
        with HybridClient(model, cloud=cloud(server), confidence=UNSURE) as client:
            stream = client.stream("Hi", max_tokens=50, temperature=0.5, seed=7, stop="!")
            events = list(stream)
        (body,) = server.bodies()
    assert shown(events) == stream.reply.text == "The answer."
    assert sum(isinstance(one, Restart) for one in events) == 1
    assert (stream.reply.route, stream.reply.cost.tokens) == ("cloud", 5)
    assert "the device was unsure" in stream.reply.reason
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert (body["max_tokens"], body["temperature"], body["seed"], body["stop"]) == (
        50, 0.5, 7, ["!"],
    )  # fmt: skip


def test_a_hopeless_answer_is_given_up_early() -> None:
    engine = FakeEngine(LONG)
    with (
        ScriptedServer([answer("ok")]) as server,
        HybridClient(fake_model(engine), cloud=cloud(server), confidence=HOPELESS) as client,
    ):
        reply = client.respond("Hi")
    assert reply.local is not None
    assert reply.local.aborted
    assert len(reply.local.text) < 20
    assert reply.text == "ok"


DOWN: dict[str, Script] = {
    "refused": status("401 No", {"error": {"message": "Hi"}}),
    "busy": status("503 Busy"),
    "reset": [Reset()],
    "html": [HEAD.replace(b"text/event-stream", b"text/html"), b"<html>"],
}


@pytest.mark.parametrize("name", DOWN)
@pytest.mark.parametrize("confidence", [UNSURE, HOPELESS])
def test_without_the_cloud_the_devices_answer_comes_marked(
    name: str, confidence: Confidence
) -> None:
    model = fake_model(FakeEngine(LOCAL))
    with (
        ScriptedServer([DOWN[name]]) as server,
        HybridClient(model, cloud=cloud(server), confidence=confidence) as client,
    ):
        stream = client.stream("Hi")
        assert shown(stream) == stream.reply.text == LOCAL.decode()
    assert (stream.reply.route, stream.reply.low_confidence) == ("local", True)
    assert "the cloud" in stream.reply.reason


def test_local_only_opens_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "create_connection", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    there = Cloud("https://cloud.example/v1", "big", "key")
    model = fake_model(FakeEngine(LOCAL))
    with HybridClient(model, cloud=there, policy=Policy("local_only"), confidence=UNSURE) as client:
        replies = [client.respond("Hi"), client.respond("Hi", prefer="cloud")]
        assert [reply.text for reply in replies] == 2 * [LOCAL.decode()]
        assert replies[0].low_confidence
        assert "policy: the default" in replies[0].reason


def said_yes(question: UploadQuestion) -> bool:
    return question.kinds == {"EMAIL"} and question.messages[0]["role"] == "user"


def said_no(question: UploadQuestion) -> bool:
    return False


def said_nothing(question: UploadQuestion) -> bool:
    raise OSError("Mail ann@x.io")


@pytest.mark.parametrize(
    ("ask", "route", "reason"),
    [
        (said_yes, "cloud", "unsure"),
        (said_no, "local", "permission was not given"),
        (said_nothing, "local", "failed with OSError"),
        (None, "local", "nobody to ask"),
    ],
)
def test_the_app_is_asked(
    ask: Callable[[UploadQuestion], bool] | None, route: str, reason: str
) -> None:
    model = fake_model(FakeEngine(LOCAL))
    with (
        ScriptedServer([answer("ok")]) as server,
        HybridClient(
            model, cloud=cloud(server), policy=Policy("ask", ask=ask), confidence=UNSURE
        ) as client,
    ):
        reply = client.respond("Mail ann@x.io")
    assert (reply.route, len(server.requests)) == (route, route == "cloud")
    assert reason in reply.reason
    assert "ann" not in reply.reason


def echo_of_placeholders(server: ScriptedServer) -> list[str]:
    (body,) = server.bodies()
    return [message["content"] for message in body["messages"]]


def test_what_is_private_is_hidden_and_comes_back() -> None:
    model = fake_model(FakeEngine(LOCAL))
    messages = [
        {"role": "system", "content": "You write for bob@y.org."},
        {"role": "user", "content": "Mail ann@x.io, cc bob@y.org."},
    ]

    class Echo(ScriptedServer):
        """Answers with the user's message, cut into pieces of three characters."""

        def answer_to(self, request: bytes) -> Script:
            body = json.loads(request.partition(b"\r\n\r\n")[2])
            text = body["messages"][-1]["content"]
            pieces = [chunk(text[at : at + 3]) for at in range(0, len(text), 3)]
            return [HEAD, *pieces, chunk(finish="stop"), usage(9, 99), event("[DONE]")]

    with (
        Echo([[]]) as server,
        HybridClient(model, cloud=cloud(server), confidence=UNSURE) as client,
    ):
        stream = client.stream(messages)
        assert shown(stream) == stream.reply.text == "Mail ann@x.io, cc bob@y.org."
        system, user = echo_of_placeholders(server)
        assert "@" not in system + user
        assert system.split()[-1].strip(".") in user
        assert client.respond(messages, upload="allow").text == stream.reply.text
    assert b"ann@x.io" in server.requests[1]


def test_a_thousand_prompts_give_no_secret_away() -> None:
    """Every byte that went to the cloud, searched for every secret that was planted."""
    chance = random.Random(0)
    secrets = [
        "ann.lee@mail.example", "+86 138 0013 8000", "+44 20 7946 0958", "(415) 555-2671",
        "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "192.168.10.254", "2001:db8::ff00:42",
        "postgres://admin:s3cret@db.internal/app", "sk-proj-abcdefghijklmnop1234",
        "AKIAIOSFODNN7EXAMPLE", "536-90-4399", "11010519491231002X", "13800138000",
    ]  # fmt: skip
    words = ["please", "send", "this", "to", "my", "friend", "and", "ask"]
    model = fake_model(FakeEngine(b"No."))
    planted = []
    with (
        ScriptedServer([answer("ok")]) as server,
        HybridClient(model, cloud=cloud(server), confidence=UNSURE) as client,
    ):
        for _ in range(1_000):
            mine = chance.sample(secrets, chance.randint(1, 3))
            mixed = [*chance.choices(words, k=12), *mine]
            chance.shuffle(mixed)
            planted.append(mine)
            assert client.respond(" ".join(mixed), prefer="cloud").route == "cloud"
        kept = client.respond("Mail ann.lee@mail.example", upload="local_only")
    assert kept.route == "local"
    assert len(server.requests) == 1_000
    for sent, mine in zip(server.requests, planted, strict=True):
        assert not [secret for secret in mine if secret.encode() in sent]


def test_the_budget_is_asked_before_anything_is_sent() -> None:
    model = fake_model(FakeEngine(LOCAL))
    budget = Budget(SpendingLimits(money_per_day=0.01))
    with ScriptedServer([answer("ok")]) as server:
        there = cloud(server, input_price=10.0, output_price=1000.0, max_output_tokens=9)
        with HybridClient(model, cloud=there, budget=budget, confidence=UNSURE) as client:
            first = client.respond("Hi", max_tokens=9)
            assert first.route == "cloud"
            # 3 tokens in and 1 out, as the server counts them.
            assert (first.cost.money, first.cost.tokens) == (pytest.approx(0.00103), 4)
            assert budget.spent().money == pytest.approx(0.00103)
            second = client.respond("Hi", max_tokens=9)
    assert (second.route, second.low_confidence) == ("local", True)
    assert "budget: money_per_day" in second.reason
    assert len(server.requests) == 1


def test_a_call_that_was_not_taken_costs_nothing() -> None:
    model = fake_model(FakeEngine(LOCAL))
    budget = Budget(SpendingLimits(tokens_per_day=100_000))
    with (
        ScriptedServer([DOWN["busy"]]) as server,
        HybridClient(model, cloud=cloud(server), budget=budget, confidence=UNSURE) as client,
    ):
        client.respond("Hi")
    assert budget.spent() == Cost()


def test_a_prompt_that_does_not_fit_goes_to_the_cloud() -> None:
    model = fake_model(FakeEngine(context_length=64))
    with (
        ScriptedServer([answer("ok")]) as server,
        HybridClient(model, cloud=cloud(server), confidence=SURE) as client,
    ):
        reply = client.respond("x" * 200)
        assert (reply.text, reply.route, reply.local) == ("ok", "cloud", None)
        assert "does not fit" in reply.reason
        with pytest.raises(ContextOverflow):
            client.respond("x" * 200, upload="local_only")


def test_one_deadline_for_both() -> None:
    model = fake_model(FakeEngine(LOCAL))
    with (
        ScriptedServer([[HEAD, Wait(30)]]) as server,
        HybridClient(model, cloud=Cloud(server.url, "big", "key"), confidence=UNSURE) as client,
    ):
        reply = client.respond("Hi", deadline=0.8)
    assert (reply.text, reply.low_confidence) == (LOCAL.decode(), True)
    assert "too slow" in reply.reason


def test_preferences_and_bad_input() -> None:
    model = fake_model(FakeEngine(LOCAL))
    with (
        ScriptedServer([answer("ok")]) as server,
        HybridClient(model, cloud=cloud(server), confidence=UNSURE) as client,
    ):
        assert client.respond("Hi", prefer="cloud").local is None
        kept = client.respond("Hi", prefer="local")
        assert (kept.route, kept.low_confidence) == ("local", False)
        with pytest.raises(InvalidOption, match="A rule for uploads must be one of"):
            client.respond("Hi", upload="yes")  # type: ignore[arg-type]
        with pytest.raises(InvalidOption):
            client.respond("Hi", temperature=-1)
    assert len(server.requests) == 1


def test_decisions_are_written_down_without_words(tmp_path: Path) -> None:
    model = fake_model(FakeEngine(LOCAL))
    journal = Journal(tmp_path / "journal.sqlite")
    with (
        ScriptedServer(
            [answer("said in the cloud"), status("400 No", {"error": "tea price"})]
        ) as server,
        HybridClient(model, cloud=cloud(server), journal=journal, confidence=UNSURE) as client,
    ):
        client.respond("the tea price for ann@x.io")
        client.respond("the tea price for ann@x.io")
        client.respond("the tea price", upload="local_only")
    first, second, third = (entry.decision for entry in journal.entries())
    assert (first.route, first.kinds, first.output_tokens) == ("cloud", ("EMAIL",), 1)
    assert set(first.signals) >= {"mean_log_probability", "length"}
    assert (second.route, second.reason) == (
        "local",
        "the device was unsure (0.00); the cloud refused (400)",
    )
    assert (third.upload, third.endpoint) == ("local_only", "")
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for words in (b"tea", b"ann@", b"not sure", b"said in"):
        assert words not in raw


def test_leaving_a_stream_early_ends_both() -> None:
    engine = FakeEngine(LOCAL)
    with (
        ScriptedServer([[HEAD, chunk("The "), Wait(30)]]) as server,
        HybridClient(
            fake_model(engine), cloud=Cloud(server.url, "big", "key"), confidence=UNSURE
        ) as client,
    ):
        with client.stream("Hi") as stream:
            for one in stream:
                if one == TextDelta("The "):
                    break
        assert all(state.closed for state in engine.states)


_LEFT_OPEN = """
import sys
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.endpoint import Cloud
client = CloudClient([Cloud(sys.argv[1], "big")])
print("true" if list(client.stream({"messages": []})) else "false")
"""


def test_a_program_ends_that_leaves_its_client_open() -> None:
    with ScriptedServer([answer("Hello")]) as server:
        assert run_python(_LEFT_OPEN, server.url, timeout=60)
