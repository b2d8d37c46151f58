"""Calls, forms and thoughts behind a hybrid server, as OpenAI's own client sees them."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from support.fake_engine import FakeEngine
from support.hybrid_served import (
    LOCAL,
    PLACEHOLDER,
    WEATHER,
    ask,
    calls_in,
    hybrid_server,
    report,
    stream,
    text_of,
)
from support.scripted_server import Script
from support.served import (
    user,
)
from support.talking_cloud import TalkingCloud, called, last, said

pytestmark = pytest.mark.e2e


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
        hybrid_server(cloud) as (server, client),
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
        assert 'edgesdk_tool_calls_total{model="sure"} 2.0' in server.get("/metrics").text


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


class Sky(BaseModel):
    city: str


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("model", ["sure", "unsure"])
def test_tools_with_a_form_on_the_device_and_in_the_cloud(
    model: str, calls: bool, streams: bool
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "sky", "schema": FORM_OF_SKY}}
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    asked: list[dict[str, Any]] = []

    def answers(body: dict[str, Any]) -> Script:
        asked.append(body)
        return called(("weather", {"city": "Rome"})) if calls else said('{"city":"Rome"}')

    with TalkingCloud(answers) as cloud, hybrid_server(cloud) as (_, client):
        text = call if calls else '{"city":"Rome"}'
        more = {"model": model, "tools": [WEATHER], "response_format": form}
        if streams:
            chunks = stream(client, text, **more)[1]
            found, content = calls_in(chunks), text_of(chunks)
        else:
            message = ask(client, text, **more).parse().choices[0].message
            found = [(c.function.name, c.function.arguments) for c in message.tool_calls or []]
            content = message.content or ""
    assert found == ([("weather", '{"city": "Rome"}')] if calls else [])
    assert content == ("" if calls else '{"city":"Rome"}')
    assert [(bool(body["tools"]), body["response_format"]) for body in asked] == (
        [(True, form)] if model == "unsure" else []
    )


FORM_OF_SKY = {**Sky.model_json_schema(), "additionalProperties": False}
