"""`edgesdk serve --cloud` as OpenAI's own client sees it: who answered, why, and who may."""

from __future__ import annotations

import json
import math
import threading
from typing import Any
from unittest.mock import ANY

import openai
import pytest
from support.fake_engine import FakeDecodeState, FakeEngine
from support.hybrid_served import (
    LOCAL,
    PATIENCE,
    PLACEHOLDER,
    ask,
    hybrid_server,
    report,
    stream,
    text_of,
)
from support.scripted_server import Script
from support.served import (
    EchoEngine,
    FakeModels,
    client_of,
    served,
    user,
)
from support.talking_cloud import TalkingCloud, echo, said

from edgesdk.hybrid.privacy.policy import Policy
from edgesdk.server.hybrid_routing import HoldPolicy

pytestmark = pytest.mark.e2e


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
        assert "the device was unsure (0.00)" in report(answer)["reason"]
        assert report(answer)["confidence"] == pytest.approx(0.3935 ** (len(LOCAL) + 1), rel=0.01)
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
def test_a_client_that_appends_never_shows_two_answers(hold: HoldPolicy) -> None:
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

    def wait(state: FakeDecodeState) -> None:
        if len(state.extended) == 1:
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
        ({"logprobs": True, "extra_headers": {"X-Edgesdk-Upload": "allow"}}, 403),
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


@pytest.mark.parametrize("streams", [False, True])
def test_log_probabilities_are_the_devices_own(streams: bool) -> None:
    def never(body: Any) -> Script:
        raise AssertionError("the cloud was asked")

    with TalkingCloud(never) as cloud, hybrid_server(cloud) as (_, client):
        counted = {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
        raw = ask(client, logprobs=True, extra_headers={"X-Edgesdk-Prefer": "cloud"}, **counted)
        chunks = list(raw.parse()) if streams else [raw.parse()]
    found = [c.choices[0].logprobs for c in chunks if c.choices]
    entries = [entry for each in found if each for entry in each.content or []]
    assert bytes(byte for entry in entries for byte in entry.bytes or []) == LOCAL
    assert all(math.exp(entry.logprob) == pytest.approx(0.39, abs=0.01) for entry in entries)
    assert raw.headers["x-edgesdk-route"] == report(chunks[-1])["route"] == "local"
    assert raw.headers["x-edgesdk-reason"] == report(chunks[-1])["reason"]
    assert "log-probabilities" in raw.headers["x-edgesdk-reason"]
    assert report(chunks[-1])["confidence"] is None
    if streams:
        assert report(chunks[-2]) == report(chunks[-1]) | {"seconds": ANY}
        assert not any("edgesdk" in c.model_extra for c in chunks[:-2])


@pytest.mark.parametrize("streams", [False, True])
def test_a_text_that_goes_on_is_the_devices(streams: bool) -> None:
    def never(body: Any) -> Script:
        raise AssertionError("the cloud was asked")

    with TalkingCloud(never) as cloud, hybrid_server(cloud) as (_, client):
        raw = client.completions.with_raw_response.create(
            model="unsure", prompt="Say \x02", temperature=0, max_tokens=40, stream=streams
        )
        parsed: Any = raw.parse()
        chunks = list(parsed) if streams else [parsed]
    assert "".join(c.choices[0].text for c in chunks) == LOCAL.decode()
    assert raw.headers["x-edgesdk-route"] == report(chunks[-1])["route"] == "local"
    assert raw.headers["x-edgesdk-reason"] == report(chunks[-1])["reason"]
    assert report(chunks[-1]) == {
        "route": "local",
        "reason": "a cloud answers chats only",
        "confidence": None,
        "low_confidence": False,
        "cost": {"money": 0, "tokens": 0},
        "endpoint": None,
        "whole": True,
        "seconds": ANY,
        "failures": [],
    }


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


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA"}}


@pytest.mark.parametrize("part", [PICTURE, SOUND, FILE])
def test_what_the_device_cannot_take_is_the_clouds(part: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "What is it, ann@x.io?"}, part]
    asked = {"model": "sure", "messages": [{"role": "user", "content": content}]}
    policy = Policy("allow", media="redact")
    with TalkingCloud(lambda body: said("A cat.")) as cloud:
        with hybrid_server(cloud, policy=policy) as (_, client):
            for rule, words in (("allow", content[0]["text"]), ("redact", None)):
                answer = client.chat.completions.create(**asked, extra_body=rules(rule))
                assert answer.choices[0].message.content == "A cat."
                (sent,) = json.loads(cloud.requests[-1].partition(b"\r\n\r\n")[2])["messages"]
                assert sent["content"][1] == part
                assert sent["content"][0]["text"] == words or words is None
        assert cloud.sent().count(b"ann@x.io") == 1
        # Nothing in it can be hidden, and nobody here sees it.
        with (
            hybrid_server(cloud) as (_, client),
            pytest.raises(openai.BadRequestError, match="Nobody can answer"),
        ):
            client.chat.completions.create(**asked)
        assert len(cloud.requests) == 2


def rules(upload: str) -> dict[str, Any]:
    return {"edgesdk": {"upload": upload}}


@pytest.mark.parametrize(
    ("role", "part", "param", "why"),
    [
        ("assistant", PICTURE, "messages.0.content.1", "Only a user sends"),
        ("user", {"type": "image_url"}, "messages.0.content.1.image_url", "is missing"),
        ("user", {"type": "hologram"}, "messages.0.content.1", "'image_url'"),
        ("user", 5, "messages.0.content.1", "an object"),
        ("user", {"type": "text", "text": 5}, "messages.0.content.1.text", "string"),
    ],
)
def test_parts_that_are_none(role: str, part: Any, param: str, why: str) -> None:
    content = [{"type": "text", "text": "?"}, part]
    messages = [{"role": role, "content": content}, *user("Hi")]
    with TalkingCloud(echo) as cloud, hybrid_server(cloud) as (server, _):
        refused = server.post(
            "/v1/chat/completions", json={"model": "sure", "messages": messages}
        ).json()["error"]
    assert refused["param"] == param
    assert why in refused["message"]


def test_a_server_without_a_cloud_takes_words_alone() -> None:
    messages = [{"role": "user", "content": [PICTURE]}]
    with served(FakeModels(sure=EchoEngine)) as server:
        refused = server.post("/v1/chat/completions", json={"model": "sure", "messages": messages})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "not_text"
    assert "cannot take pictures" in refused.json()["error"]["message"]


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
