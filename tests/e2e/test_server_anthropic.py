"""`/v1/messages` as Anthropic's own client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter
from support.fake_engine import FakeEngine
from support.script_engine import HERMES_TEMPLATE, ScriptEngine, call
from support.served import EchoEngine, FakeModels, Served, served

pytestmark = pytest.mark.e2e

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
WEATHER: Any = {
    "name": "get_weather",
    "description": "Tell the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    "cache_control": {"type": "ephemeral"},
}
LIMA = call("get_weather", city="Lima")


@pytest.fixture(scope="module")
def script() -> ScriptEngine:
    return ScriptEngine((f"I look.\n{LIMA}", "It is 21 degrees."), context_length=8192)


@pytest.fixture(scope="module")
def server(script: ScriptEngine) -> Iterator[Served]:
    models = FakeModels(
        template=HERMES_TEMPLATE, hello=FakeEngine, echo=EchoEngine, script=lambda: script
    )
    with served(models, max_models=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.url, api_key="unused", max_retries=0, timeout=20
    ) as made:
        yield made


def ask(client: anthropic.Anthropic, text: str = "Hi", **more: Any) -> anthropic.types.Message:
    asked = {"model": "echo", "max_tokens": 400, "messages": [{"role": "user", "content": text}]}
    return client.messages.create(**{**asked, **more})  # type: ignore[call-overload, no-any-return]


def test_a_message(client: anthropic.Anthropic) -> None:
    message = ask(client, model="hello")
    assert [block.model_dump(exclude_none=True) for block in message.content] == [
        {"type": "text", "text": "Hello there."}
    ]
    assert (message.role, message.type, message.model) == ("assistant", "message", "hello")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    # The fake's tokens are bytes; its template writes "user: Hi\n" and one byte that opens.
    usage = message.usage
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == len("user: Hi\n") + 1
    assert usage.output_tokens == len("Hello there.")


def test_limits_and_stop_sequences(client: anthropic.Anthropic) -> None:
    cut = ask(client, model="hello", max_tokens=3)
    assert (said(cut), cut.stop_reason) == ("Hel", "max_tokens")
    stopped = ask(client, model="hello", stop_sequences=["zzz", " there"])
    assert said(stopped) == "Hello"
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " there")


def said(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_stream_has_its_events_in_order_and_adds_up_to_the_message(
    client: anthropic.Anthropic,
) -> None:
    with client.messages.stream(
        model="echo", max_tokens=99, messages=[{"role": "user", "content": "Grüße 🌍"}]
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == said(final) == "Grüße 🌍"
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(text.encode())


def events(server: Served, body: dict[str, Any]) -> list[Any]:
    """The stream's events, each checked by its name and by Anthropic's own types."""
    reply = server.post("/v1/messages", json={"stream": True, "max_tokens": 400, **body})
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in reply.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = EVENT.validate_python(json.loads(data.removeprefix("data: ")), strict=True)
        assert name == f"event: {event.type}"
        found.append(event)
    return found


def test_a_streamed_call(server: Served) -> None:
    asked = {"role": "user", "content": f"Well.\n{LIMA}"}
    found = events(server, {"model": "echo", "messages": [asked], "tools": [WEATHER]})
    kinds = [event.type for event in found if event.type != "content_block_delta"]
    block = ["content_block_start", "content_block_stop"]
    assert kinds == ["message_start", *block, *block, "message_delta", "message_stop"]
    starts = [event for event in found if event.type == "content_block_start"]
    assert [(event.index, event.content_block.type) for event in starts] == [
        (0, "text"),
        (1, "tool_use"),
    ]
    assert starts[1].content_block.name == "get_weather"
    written = [e.delta.partial_json for e in found if getattr(e, "index", 0) == 1 and _is_delta(e)]
    assert json.loads("".join(written)) == {"city": "Lima"}
    assert found[0].message.usage.input_tokens > len(json.dumps(WEATHER["input_schema"]))
    assert found[-2].delta.stop_reason == "tool_use"


def _is_delta(event: Any) -> bool:
    return bool(event.type == "content_block_delta")


def test_what_claude_code_sends(client: anthropic.Anthropic, script: ScriptEngine) -> None:
    """System as blocks with marks for the cache, metadata, betas, many tools, thinking, and a
    second turn with the result."""
    mark = {"cache_control": {"type": "ephemeral"}}
    tools = [WEATHER, *({**WEATHER, "name": f"Tool{i}"} for i in range(12))]
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>"}]},
        {"role": "user", "content": [{"type": "text", "text": "How warm is it?", **mark}]},
    ]

    def turn(nonce: str) -> Any:
        with client.beta.messages.stream(
            model="script",
            max_tokens=400,
            system=[
                {"type": "text", "text": f"x-anthropic-billing-header: cch={nonce};"},
                {"type": "text", "text": "You are a coding agent.", **mark},
            ],
            messages=messages,
            tools=tools,
            metadata={"user_id": "user_1_account__session_2"},
            betas=["claude-code-20250219", "interleaved-thinking-2025-05-14"],
            thinking={"type": "enabled", "budget_tokens": 1024},
            extra_body={"context_management": {"edits": []}, "temperature": 0},
            extra_query={"beta": "true"},
        ) as stream:
            return stream.get_final_message()

    first = turn("abcde")
    assert [block.type for block in first.content] == ["text", "tool_use"]
    assert first.stop_reason == "tool_use"
    used = first.content[1]
    messages.append({"role": "assistant", "content": first.content})
    result = {"type": "tool_result", "tool_use_id": used.id, "is_error": True}
    parts = [{"type": "text", "text": "21"}, {"type": "text", "text": "sunny"}]
    messages.append(
        {"role": "user", "content": [{**result, "content": parts}, {"type": "text", "text": "So?"}]}
    )
    second = turn("fghij")
    assert said(second) == "It is 21 degrees."
    before, after = script.prompts[-2:]
    assert "billing" not in before
    assert "system: You are a coding agent." in before
    # Nothing of the first turn is computed again.
    assert after.startswith(before)
    assert "get_weather gave Error: 21\n\nsunny\nuser: So?" in after
    assert second.usage.cache_read_input_tokens >= len(before.encode())


def test_the_choice_of_tools(client: anthropic.Anthropic) -> None:
    free = ask(client, "No call.", tools=[WEATHER], tool_choice={"type": "auto"})
    assert [block.type for block in free.content] == ["text"]
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        forced = ask(client, LIMA, tools=[WEATHER], tool_choice=choice)
        assert [block.type for block in forced.content] == ["tool_use"]
    none = ask(client, LIMA, tools=[WEATHER], tool_choice={"type": "none"})
    assert said(none) == LIMA
    one = {"type": "auto", "disable_parallel_tool_use": True}
    alone = ask(client, f"{LIMA}\n{call('get_weather', city='Oslo')}", tools=[WEATHER])
    assert len(alone.content) == 2
    alone = ask(
        client,
        f"{LIMA}\n{call('get_weather', city='Oslo')}",
        tools=[WEATHER],
        tool_choice=one,
    )
    assert len(alone.content) == 1


class Place(BaseModel):
    city: str
    degrees: int


def test_a_structured_answer(client: anthropic.Anthropic) -> None:
    message = client.messages.parse(
        model="echo",
        max_tokens=400,
        messages=[{"role": "user", "content": '{"city":"Lima","degrees":21}'}],
        output_format=Place,
    )
    assert message.parsed_output == Place(city="Lima", degrees=21)
    # A model that says something else is held to the schema.
    held = ask(client, "Hi", output_config={"format": schema_of(Place)}, max_tokens=20)
    assert said(held).startswith('{"city":"')


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return {"type": "json_schema", "schema": model.model_json_schema()}


def test_tokens_are_counted_without_an_answer(client: anthropic.Anthropic) -> None:
    asked: Any = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}], "system": "Go."}
    counted = client.messages.count_tokens(**asked)
    assert counted.input_tokens == len("system: Go.\nuser: Hi\n") + 1
    more = client.messages.count_tokens(**asked, tools=[WEATHER])
    assert more.input_tokens > counted.input_tokens
    # A prompt that is too long for the model has a length, too.
    long = {**asked, "messages": [{"role": "user", "content": "x" * 9000}]}
    assert client.messages.count_tokens(**long).input_tokens > 9000


def test_errors_have_anthropics_form(client: anthropic.Anthropic, server: Served) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(client, model="absent")
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content") as wrong:
        client.messages.create(
            model="echo",
            max_tokens=9,
            messages=[{"role": "user", "content": [{"type": "text", "text": 3}]}],  # type: ignore[typeddict-item]
        )
    body: Any = wrong.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        ask(client, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    with pytest.raises(anthropic.BadRequestError, match="'nonsense'"):
        ask(client, extra_body={"nonsense": 1})
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        ask(client, "x" * 5000)
    elsewhere = server.get("/v1/messages")
    assert (elsewhere.status_code, elsewhere.json()["type"]) == (405, "error")


def test_the_key_comes_in_anthropics_header() -> None:
    with served(FakeModels(hello=FakeEngine), api_key="secret") as running:

        def client(key: str) -> anthropic.Anthropic:
            return anthropic.Anthropic(base_url=running.url, api_key=key, max_retries=0)

        assert said(ask(client("secret"), model="hello")) == "Hello there."
        with pytest.raises(anthropic.AuthenticationError) as caught:
            ask(client("wrong"), model="hello")
        assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
