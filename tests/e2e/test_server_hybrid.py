"""`edgesdk serve --cloud` as OpenAI's own client sees it: who answered, why, and what was sent."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel
from support.command_line import environment
from support.fake_engine import FakeEngine, FakeSequence
from support.scripted_server import HEAD, Reset, Script, ScriptedServer, Wait, chunk, event, status
from support.served import (
    TOOL_TEMPLATE,
    EchoEngine,
    FakeModels,
    Served,
    client_of,
    served,
    user,
)
from support.talking_cloud import TalkingCloud, called, echo, last, said

from edgesdk.cli import main
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.cloud import attempts
from edgesdk.hybrid.cloud.endpoint import Cloud
from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.hybrid.records.journal import Journal
from edgesdk.hybrid.spending.budget import Budget
from edgesdk.hybrid.spending.limits import SpendingLimits
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.server.hybrid.setup import Hold, HybridSetup

pytestmark = pytest.mark.e2e

# The fake engine's tokens have a probability of 0.39, the echo's of 1.
CONFIDENCE = Confidence(threshold=0.5)
LOCAL = b"I am not sure."
PLACEHOLDER = re.compile(r"<[A-Z_]+_[0-9]+>")
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_FIRST_PAUSE", 0.01)


@contextmanager
def hybrid_server(
    cloud: ScriptedServer | Cloud,
    *,
    policy: Policy | None = None,
    hold: Hold = "decision",
    engine: Callable[[], FakeEngine] = lambda: FakeEngine(LOCAL),
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Iterator[tuple[Served, openai.OpenAI]]:
    """A server of the models "unsure" and "sure", and a client of it."""
    endpoint = cloud if isinstance(cloud, Cloud) else Cloud(cloud.url, "big", "sk-secret-key")
    rules = policy or Policy("redact")
    setup = HybridSetup(
        lambda model: HybridClient(
            model, cloud=endpoint, policy=rules, confidence=CONFIDENCE, **changes
        ),
        rules,
        hold=hold,
    )
    models = FakeModels(template=TOOL_TEMPLATE, unsure=engine, sure=EchoEngine)
    with served(models, setup, **(settings or {})) as server, client_of(server) as client:
        yield server, client


def ask(client: openai.OpenAI, text: str = "Hi", model: str = "unsure", **more: Any) -> Any:
    asked = {"model": model, "messages": user(text), "temperature": 0, **more}
    return client.chat.completions.with_raw_response.create(**asked)


def report(answer: Any) -> dict[str, Any]:
    """The field `edgesdk`."""
    found: dict[str, Any] = answer.model_extra["edgesdk"]
    return found


def stream(client: openai.OpenAI, text: str = "Hi", **more: Any) -> tuple[httpx.Headers, list[Any]]:
    raw = ask(client, text, stream=True, **more)
    return raw.headers, list(raw.parse())


def text_of(chunks: list[Any]) -> str:
    """What a client shows that appends whatever comes."""
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_who_answered_and_why() -> None:
    with (
        TalkingCloud(lambda body: said("The ", "answer.")) as cloud,
        hybrid_server(cloud) as (_, client),
    ):
        raw = ask(client, max_tokens=40)
        answer = raw.parse()
        assert answer.choices[0].message.content == "The answer."
        assert answer.choices[0].finish_reason == "stop"
        assert raw.headers["x-edgesdk-route"] == report(answer)["route"] == "cloud"
        assert raw.headers["x-edgesdk-reason"] == report(answer)["reason"]
        assert "the device was unsure (0.39)" in report(answer)["reason"]
        assert report(answer)["confidence"] == pytest.approx(0.39, abs=0.01)
        assert report(answer)["cost"]["tokens"] == 5
        # As the one who answered counts them.
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2)
        (body,) = cloud.bodies()
        assert (body["model"], body["max_tokens"]) == ("big", 40)

        raw = ask(client, "I am sure.", model="sure")
        answer = raw.parse()
        assert answer.choices[0].message.content == "I am sure."
        assert raw.headers["x-edgesdk-route"] == report(answer)["route"] == "local"
        assert report(answer)["confidence"] == pytest.approx(1)
        assert answer.usage.completion_tokens == len("I am sure.")
        assert len(cloud.requests) == 1


@pytest.mark.parametrize("hold", ["decision", "answer"])
def test_a_client_that_appends_never_shows_two_answers(hold: Hold) -> None:
    with (
        TalkingCloud(lambda body: said("The ", "answer.")) as cloud,
        hybrid_server(cloud, hold=hold) as (_, client),
    ):
        headers, chunks = stream(client, stream_options={"include_usage": True})
        assert text_of(chunks) == "The answer."
        assert headers["x-edgesdk-route"] == "cloud"
        assert "unsure" in headers["x-edgesdk-reason"]
        *_, closing, counted = chunks
        assert closing.choices[0].finish_reason == "stop"
        assert report(closing)["route"] == report(counted)["route"] == "cloud"
        assert (counted.usage.prompt_tokens, counted.usage.completion_tokens) == (3, 2)
        assert {c.id for c in chunks} == {closing.id}

        headers, chunks = stream(client, "I am sure.", model="sure")
        assert text_of(chunks) == "I am sure."
        assert (headers["x-edgesdk-route"], report(chunks[-1])["route"]) == ("local", "local")
        assert headers["x-edgesdk-reason"] == "sure enough"


def test_a_client_that_knows_may_see_the_draft_at_once() -> None:
    with (
        TalkingCloud(lambda body: said("The answer.")) as cloud,
        hybrid_server(cloud, hold="nothing") as (_, client),
    ):
        headers, chunks = stream(client)
    assert headers["x-edgesdk-route"] == "undecided"
    assert "x-edgesdk-reason" not in headers
    (restart,) = [
        at for at, c in enumerate(chunks) if "restart" in (c.model_extra.get("edgesdk") or {})
    ]
    assert LOCAL.decode().startswith(text_of(chunks[:restart])[:5])
    assert text_of(chunks[restart:]) == "The answer."
    assert report(chunks[-1])["route"] == "cloud"


def test_what_nobody_else_answers_streams_at_once() -> None:
    """Its second token is computed only when the first has arrived."""
    shown = threading.Event()

    def wait(sequence: FakeSequence) -> None:
        if len(sequence.extended) == 1:
            assert shown.wait(PATIENCE), "the first piece did not come"

    def never(body: Any) -> Script:
        raise AssertionError("the cloud was asked")

    with (
        TalkingCloud(never) as cloud,
        hybrid_server(cloud, engine=lambda: FakeEngine(LOCAL, before_extend=wait)) as (_, client),
    ):
        raw = ask(client, stream=True, extra_body={"edgesdk": {"prefer": "local"}})
        assert raw.headers["x-edgesdk-route"] == "local"
        text = ""
        for one in raw.parse():
            text += one.choices[0].delta.content or ""
            if text:
                shown.set()
        assert text == LOCAL.decode()
        assert cloud.requests == []


def test_a_request_chooses_for_itself() -> None:
    with (
        TalkingCloud(lambda body: said("ok")) as cloud,
        hybrid_server(cloud, policy=Policy("allow")) as (_, client),
    ):
        stays: list[dict[str, Any]] = [
            {"extra_headers": {"X-Edgesdk-Upload": "local_only"}},
            {"extra_headers": {"X-Edgesdk-Prefer": "local"}},
            {"extra_body": {"edgesdk": {"upload": "local_only", "prefer": "cloud"}}},
        ]
        for more in stays:
            answer = ask(client, **more).parse()
            assert (report(answer)["route"], cloud.requests) == ("local", [])
        goes = {"extra_headers": {"X-Edgesdk-Prefer": "cloud"}}
        assert report(ask(client, "Sure.", model="sure", **goes).parse())["route"] == "cloud"
        answer = ask(client, "ann@x.io", extra_body={"edgesdk": {"upload": "redact"}}).parse()
        assert report(answer)["route"] == "cloud"
        assert b"ann@x.io" not in cloud.sent()
        ask(client, "ann@x.io")
        assert b"ann@x.io" in cloud.sent()


@pytest.mark.parametrize(
    ("more", "status_code"),
    [
        ({"extra_headers": {"X-Edgesdk-Upload": "allow"}}, 403),
        ({"extra_body": {"edgesdk": {"upload": "allow"}}}, 403),
        ({"extra_headers": {"X-Edgesdk-Upload": "ask"}}, 400),
        ({"extra_headers": {"X-Edgesdk-Prefer": "me"}}, 400),
        ({"extra_body": {"edgesdk": {"upload": "ask"}}}, 400),
        ({"extra_body": {"edgesdk": {"other": 1}}}, 400),
        (
            {
                "extra_headers": {"X-Edgesdk-Prefer": "local"},
                "extra_body": {"edgesdk": {"prefer": "cloud"}},
            },
            400,
        ),
        ({"logprobs": True}, 400),
    ],
)
def test_what_a_request_may_not_choose(more: Any, status_code: int) -> None:
    with (
        TalkingCloud(lambda body: said("ok")) as cloud,
        hybrid_server(cloud) as (_, client),
    ):
        with pytest.raises(openai.APIStatusError) as refused:
            ask(client, **more)
        assert refused.value.status_code == status_code
        assert cloud.requests == []


def test_a_plain_server_knows_none_of_it() -> None:
    with served(FakeModels(echo=EchoEngine)) as server, client_of(server) as client:
        raw = ask(client, model="echo")
        assert not [name for name in raw.headers if name.startswith("x-edgesdk")]
        assert "edgesdk" not in raw.parse().model_extra
        with pytest.raises(openai.BadRequestError, match="edgesdk"):
            ask(client, model="echo", extra_body={"edgesdk": {}})


@pytest.mark.parametrize("streams", [False, True])
def test_secrets_leave_as_placeholders_and_come_back(streams: bool) -> None:
    messages = [
        {"role": "system", "content": "You write for bob@y.org."},
        {"role": "user", "content": "I am ann@x.io."},
        {"role": "assistant", "content": "Hello ann@x.io!"},
        {"role": "user", "content": "Mail ann@x.io, cc bob@y.org."},
    ]
    with TalkingCloud(echo) as cloud, hybrid_server(cloud) as (_, client):
        if streams:
            _, chunks = stream(client, messages=messages)
            text = text_of(chunks)
        else:
            text = ask(client, messages=messages).parse().choices[0].message.content
        (body,) = cloud.bodies()
    assert text == "Mail ann@x.io, cc bob@y.org."
    assert b"@" not in cloud.sent()
    one, two = PLACEHOLDER.findall(body["messages"][3]["content"])
    assert one in body["messages"][1]["content"]
    assert two in body["messages"][0]["content"]


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


def calls_in(chunks: list[Any]) -> list[tuple[str, str]]:
    """Names and arguments, put together as clients do."""
    found: dict[int, list[str]] = {}
    for one in chunks:
        for call in one.choices[0].delta.tool_calls or []:
            entry = found.setdefault(call.index, ["", ""])
            entry[0] += call.function.name or ""
            entry[1] += call.function.arguments or ""
    return [(name, arguments) for name, arguments in found.values()]


@pytest.mark.parametrize("streams", [False, True])
def test_calls_of_the_cloud_come_with_their_values(streams: bool) -> None:
    def answers(body: dict[str, Any]) -> Script:
        (mail,) = PLACEHOLDER.findall(last(body))
        return called(("weather", {"city": mail, "days": 2}), ("weather", {"city": "Rome"}))

    with TalkingCloud(answers) as cloud, hybrid_server(cloud) as (_, client):
        if streams:
            _, chunks = stream(client, "Weather at ann@x.io", tools=[WEATHER])
            found, reason = calls_in(chunks), chunks[-1].choices[0].finish_reason
        else:
            choice = ask(client, "Weather at ann@x.io", tools=[WEATHER]).parse().choices[0]
            assert choice.message.content is None
            calls = choice.message.tool_calls
            found = [(call.function.name, call.function.arguments) for call in calls]
            assert calls[0].id == "call_weather_0"
            reason = choice.finish_reason
    assert found == [
        ("weather", '{"city": "ann@x.io", "days": 2}'),
        ("weather", '{"city": "Rome"}'),
    ]
    assert reason == "tool_calls"
    assert b"ann@x.io" not in cloud.sent()


@pytest.mark.parametrize("streams", [False, True])
def test_calls_of_the_device_stay_its_own(streams: bool) -> None:
    local = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    bad = '<tool_call>\n{"name": "weather", "arguments": {"city": 5}}\n</tool_call>'
    with (
        TalkingCloud(lambda body: called(("weather", {"city": "Rome"}))) as cloud,
        hybrid_server(cloud) as (_, client),
    ):
        for text, city in [(local, "Oslo"), (bad, "Rome")]:
            if streams:
                found = calls_in(stream(client, text, model="sure", tools=[WEATHER])[1])
            else:
                choice = ask(client, text, model="sure", tools=[WEATHER]).parse().choices[0]
                found = [
                    (call.function.name, call.function.arguments)
                    for call in choice.message.tool_calls
                ]
            assert found == [("weather", json.dumps({"city": city}))]
        assert len(cloud.requests) == 1


def test_a_conversation_with_calls_goes_to_the_cloud_and_back() -> None:
    """As OpenAI's client sends answers back: with all their fields."""

    def answers(body: dict[str, Any]) -> Script:
        if body["messages"][-1]["role"] == "tool":
            (made,) = body["messages"][-2]["tool_calls"]
            assert made["id"] == body["messages"][-1]["tool_call_id"]
            assert PLACEHOLDER.search(made["function"]["arguments"])
            return said("Sunny at ", *PLACEHOLDER.findall(last(body)))
        (mail,) = PLACEHOLDER.findall(last(body))
        return called(("weather", {"city": mail}), words="Let me see. ")

    with TalkingCloud(answers) as cloud, hybrid_server(cloud) as (_, client):
        messages = user("Weather at ann@x.io")
        first = ask(client, messages=messages, tools=[WEATHER]).parse().choices[0].message
        messages += [first, {
            "role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sun at ann@x.io",
        }]  # fmt: skip
        answer = ask(client, messages=messages, tools=[WEATHER]).parse()
        assert answer.choices[0].message.content == "Sunny at ann@x.io"
    assert b"ann@x.io" not in cloud.sent()


@pytest.mark.parametrize("streams", [False, True])
def test_a_call_of_the_cloud_that_does_not_fit_is_none(streams: bool) -> None:
    with (
        TalkingCloud(lambda body: called(("weather", {"city": 5}))) as cloud,
        hybrid_server(cloud) as (_, client),
    ):
        if streams:
            headers, chunks = stream(client, tools=[WEATHER])
            text, told = text_of(chunks), report(chunks[-1])
            assert headers["x-edgesdk-route"] == "local"
        else:
            answer = ask(client, tools=[WEATHER]).parse()
            text, told = answer.choices[0].message.content, report(answer)
    assert (text, told["route"], told["low_confidence"]) == (LOCAL.decode(), "local", True)
    assert "does not fit the tools" in told["reason"]


class City(BaseModel):
    """A place."""

    name: str
    size: int


@pytest.mark.parametrize("text", ['{"name": "Rome", "size": 3}', '{"name": "Rome"}', "Rome"])
def test_a_form_holds_for_both(text: str) -> None:
    local = b'{"name":"Oslo","size":1}'
    with (
        TalkingCloud(lambda body: said(text)) as cloud,
        hybrid_server(cloud, engine=lambda: FakeEngine(local)) as (_, client),
    ):
        answer = client.chat.completions.parse(
            model="unsure", messages=user("Where?"), temperature=0, response_format=City
        )
        _, chunks = stream(
            client,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "City", "schema": City.model_json_schema()},
            },
        )
        body = cloud.bodies()[0]
    fits = "size" in text
    expected = City(name="Rome", size=3) if fits else City(name="Oslo", size=1)
    assert answer.choices[0].message.parsed == expected
    assert report(answer)["route"] == ("cloud" if fits else "local")
    assert City.model_validate_json(text_of(chunks)) == expected
    assert body["response_format"]["json_schema"]["name"] == "City"


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_thought_is_apart(streams: bool) -> None:
    def answers(body: dict[str, Any]) -> Script:
        return said("Rome.", reasoning_content="Hm, ")

    with TalkingCloud(answers) as cloud, hybrid_server(cloud) as (_, client):
        if streams:
            _, chunks = stream(client)
            thoughts = [c.choices[0].delta.model_extra.get("reasoning_content") for c in chunks]
            assert "".join(thought or "" for thought in thoughts) == "Hm, "
            assert text_of(chunks) == "Rome."
        else:
            message = ask(client).parse().choices[0].message
            assert (message.content, message.model_extra["reasoning_content"]) == ("Rome.", "Hm, ")
            # It can be sent back as it came.
            again = [*user("Hi"), message, *user("And?")]
            assert ask(client, messages=again).parse().choices[0].message.content == "Rome."


def test_a_prompt_too_long_for_the_device_goes_to_the_cloud() -> None:
    with (
        TalkingCloud(lambda body: said("ok")) as cloud,
        hybrid_server(cloud, engine=lambda: FakeEngine(context_length=64)) as (_, client),
    ):
        answer = ask(client, "x" * 200).parse()
        assert (answer.choices[0].message.content, report(answer)["confidence"]) == ("ok", None)
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, "x" * 200, extra_body={"edgesdk": {"upload": "local_only"}})
        assert refused.value.code == "context_length_exceeded"


def failing(*steps: Any) -> Callable[[dict[str, Any]], Script]:
    return lambda body: list(steps)


FAULTS: dict[str, Any] = {
    "refused": failing(*status("401 No", {"error": {"message": "bad key sk-secret-key"}})),
    "busy": failing(*status("503 Busy")),
    "reset": failing(Reset()),
    "html": failing(HEAD.replace(b"text/event-stream", b"text/html"), b"<html>"),
    "in band": failing(HEAD, event({"error": {"message": "sk-secret-key"}})),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("streams", [False, True])
def test_without_the_cloud_the_devices_answer_comes_marked(
    name: str, streams: bool, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with TalkingCloud(FAULTS[name]) as cloud, hybrid_server(cloud) as (server, client):
        if streams:
            headers, chunks = stream(client)
            text, told = text_of(chunks), report(chunks[-1])
        else:
            raw = ask(client)
            headers, answer = raw.headers, raw.parse()
            text, told = answer.choices[0].message.content, report(answer)
        metrics = server.get("/metrics").text
    assert (text, told["route"], told["low_confidence"]) == (LOCAL.decode(), "local", True)
    assert headers["x-edgesdk-route"] == "local"
    assert "the cloud" in told["reason"]
    assert 'edgesdk_hybrid_answers_total{model="unsure",route="local"} 1.0' in metrics
    # The key is in the requests to the cloud, and nowhere else.
    assert b"Bearer sk-secret-key" in cloud.sent()
    everything = [caplog.text, *capfd.readouterr(), metrics, str(headers), json.dumps(told)]
    assert not [text for text in everything if "sk-secret-key" in text]


def test_an_answer_that_breaks_off_is_no_whole_one() -> None:
    def answers(body: dict[str, Any]) -> Script:
        return [HEAD, chunk("The an")]

    with TalkingCloud(answers) as cloud, hybrid_server(cloud) as (_, client):
        _, chunks = stream(client)
        assert text_of(chunks) == "The an"
        assert chunks[-1].choices[0].finish_reason == "length"
        assert (report(chunks[-1])["route"], report(chunks[-1])["whole"]) == ("cloud", False)
        assert len(cloud.requests) == 1


def test_what_is_shown_at_its_end_may_begin_again() -> None:
    tried: list[int] = []

    def answers(body: dict[str, Any]) -> Script:
        tried.append(1)
        return said("The answer.") if len(tried) % 2 == 0 else [HEAD, chunk("The an")]

    with (
        TalkingCloud(answers) as cloud,
        hybrid_server(cloud, hold="answer") as (_, client),
    ):
        assert ask(client).parse().choices[0].message.content == "The answer."
        _, chunks = stream(client)
        assert (text_of(chunks), report(chunks[-1])["whole"]) == ("The answer.", True)


def test_what_cannot_be_taken_back_is_an_error() -> None:
    def answers(body: dict[str, Any]) -> Script:
        return called(("weather", {"city": 5}), words="Let me see. ")

    with TalkingCloud(answers) as cloud, hybrid_server(cloud) as (_, client):
        raw = ask(client, stream=True, tools=[WEATHER])
        shown: list[str] = []

        def read() -> None:
            for one in raw.parse():
                shown.append(one.choices[0].delta.content or "")

        with pytest.raises(openai.APIError, match="withdrawn"):
            read()
    assert "".join(shown) == "Let me see. "


def test_budget_and_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    budget = Budget(SpendingLimits(money_per_day=0.01))
    with TalkingCloud(lambda body: said("ok")) as cloud:
        there = Cloud(cloud.url, "big", "sk-key", input_price=10.0, output_price=1000.0)
        with hybrid_server(there, budget=budget, journal=journal) as (_, client):
            first = ask(client, "the tea price", max_tokens=9).parse()
            second = ask(client, "the tea price", max_tokens=9).parse()
    assert report(first)["cost"]["money"] == pytest.approx(0.00103)
    assert (report(second)["route"], report(second)["low_confidence"]) == ("local", True)
    assert "budget: money_per_day" in report(second)["reason"]
    assert [entry.decision.route for entry in journal.entries()] == ["cloud", "local"]
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"tea" not in raw
    assert b"sk-key" not in raw


class Hanging(ScriptedServer):
    """Begins an answer, and says nothing more; `left` is set when the other side has gone."""

    def __init__(self) -> None:
        super().__init__([[]])
        self.left = threading.Event()

    def _serve(self, plain: socket.socket, script: Script) -> None:
        with plain:
            plain.settimeout(PATIENCE)
            plain.recv(65_536)
            plain.sendall(HEAD + chunk("The "))
            while plain.recv(65_536):
                pass
        self.left.set()


def test_a_client_that_leaves_ends_the_answer_of_the_cloud_too() -> None:
    with Hanging() as cloud, hybrid_server(cloud) as (server, client):
        answer = ask(client, stream=True).parse()
        assert next(iter(answer)).choices[0].delta.role == "assistant"
        answer.close()
        assert cloud.left.wait(PATIENCE)
        server.until(running=0, waiting=0)


def test_the_queue_s_deadline_holds_for_the_cloud_too() -> None:
    def answers(body: dict[str, Any]) -> Script:
        return [HEAD, Wait(PATIENCE)]

    with (
        TalkingCloud(answers) as cloud,
        hybrid_server(cloud, settings={"deadline": 4.0}) as (_, client),
    ):
        answer = ask(client).parse()
    assert (answer.choices[0].message.content, report(answer)["route"]) == (
        LOCAL.decode(), "local",
    )  # fmt: skip
    assert "too slow" in report(answer)["reason"]


def test_stopping_ends_what_waits_for_the_cloud() -> None:
    ended: list[int] = []

    def run(server: Served) -> None:
        body = {"model": "unsure", "messages": user("Hi"), "temperature": 0}
        ended.append(server.post("/v1/chat/completions", json=body).status_code)

    with Hanging() as cloud:
        with hybrid_server(cloud) as (server, _):
            thread = threading.Thread(target=run, args=[server])
            thread.start()
            server.until(running=1)
        thread.join(PATIENCE)
        assert cloud.left.wait(PATIENCE)
    assert ended == [503]


def test_local_conversations_keep_their_cache() -> None:
    with (
        TalkingCloud(lambda body: said("ok")) as cloud,
        hybrid_server(cloud) as (_, client),
    ):
        first = ask(client, "One, two, three.", model="sure").parse()
        again = [*user("One, two, three."), first.choices[0].message, *user("Four.")]
        second = ask(client, messages=again, model="sure").parse()
    assert second.choices[0].message.content == "Four."
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.total_tokens - 1
    assert cloud.requests == []


THERE = ["--cloud", "https://cloud.example/v1", "--cloud-model", "big"]


@pytest.mark.parametrize(
    ("options", "said_why"),
    [
        (["--cloud-model", "big"], "--cloud-model goes with --cloud"),
        (["--upload", "redact"], "--upload goes with --cloud"),
        (["--cloud", "https://cloud.example/v1"], "one --cloud-model"),
        ([*THERE, "--upload", "ask"], "nobody to ask"),
        ([*THERE, "--cloud-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        ([*THERE, "--budget", "much"], "LIMIT=AMOUNT"),
        ([*THERE, "--budget", "money_per_day=1"], "--cloud-price"),
        ([*THERE, "--budget", "tokens_per_day=nan"], "no amount"),
        ([*THERE, "--cloud-price", "1"], "two prices"),
        ([*THERE, "--budget-file", "x"], "--budget"),
        (["--cloud", "ftp://x", "--cloud-model", "big"], "no base URL"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str],
    said_why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EDGESDK_HOME", str(tmp_path))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", *options])
    told = capsys.readouterr()
    assert ended.value.code == 2, told.err
    assert said_why in " ".join(told.err.split())
    assert told.out == ""


# The real command line around a model that is not real.
_SERVE = """
import sys
from edgesdk.server import sources
from support.command_line import environment
from support.fake_engine import FakeEngine
from support.served import FakeModels
from edgesdk.cli import main

models = FakeModels(unsure=lambda: FakeEngine(b"I am not sure."))
sources.StoreModels = lambda *given, **named: models
main(["serve", "--port", "0", "--grace", "0", *sys.argv[1:]])
"""


def test_the_command_line(tmp_path: Path) -> None:
    with TalkingCloud(lambda body: said("The answer.")) as cloud:
        options = [
            *("--cloud", cloud.url, "--cloud-model", "big", "--cloud-key-env", "MY_KEY"),
            *("--cloud-price", "10,1000", "--budget", "money_per_day=0.002"),
            *("--budget-file", str(tmp_path / "budget.sqlite")),
            *("--journal", str(tmp_path / "journal.sqlite")),
            *("--upload", "allow", "--confidence", "0.5", "--hold", "answer"),
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, *options],
            env=environment(MY_KEY="sk-secret-key", EDGESDK_HOME=str(tmp_path / "home")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            asked = {"model": "unsure", "messages": user("To ann@x.io"), "max_tokens": 1}
            answers = [
                httpx.post(f"{url}/chat/completions", json=asked, timeout=PATIENCE).json()
                for _ in range(3)
            ]
        finally:
            process.terminate()
            out, err = process.communicate(timeout=PATIENCE)
    assert [answer["edgesdk"]["route"] for answer in answers] == ["cloud", "local", "local"]
    assert "money_per_day" in answers[1]["edgesdk"]["reason"]
    assert b"ann@x.io" in cloud.sent()
    assert b"Bearer sk-secret-key" in cloud.sent()
    journal = Journal(tmp_path / "journal.sqlite")
    assert [entry.decision.route for entry in journal.entries()] == ["cloud", "local", "local"]
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*.sqlite"))
    assert b"sk-secret-key" not in written
    assert "sk-secret-key" not in out + err
    assert process.returncode == 0, err
