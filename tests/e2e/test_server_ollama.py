"""Ollama's API as its own client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from pydantic import BaseModel
from support.fake_engine import FakeEngine
from support.script_engine import HERMES_TEMPLATE, call
from support.served import EchoEngine, FakeModels, Served, served

pytestmark = pytest.mark.e2e

LIMA = call("weather", city="Lima")


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: where
    """
    return city


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    models = FakeModels(template=HERMES_TEMPLATE, hello=FakeEngine, echo=EchoEngine)
    with served(models) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> ollama.Client:
    return ollama.Client(server.url, timeout=20)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_chat(client: ollama.Client) -> None:
    reply = client.chat("hello:latest", user("Hi"))
    assert (reply.message.role, reply.message.content) == ("assistant", "Hello there.")
    assert (reply.done, reply.done_reason) == (True, "stop")
    assert reply.prompt_eval_count == len("user: Hi\n") + 1
    assert reply.eval_count == len("Hello there.")
    for seconds in (reply.total_duration, reply.load_duration, reply.eval_duration):
        assert seconds is not None
        assert seconds >= 0


def test_it_streams_lines_of_json_unless_told_not_to(client: ollama.Client, server: Served) -> None:
    pieces = list(client.chat("echo", user("Grüße 🌍"), stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == "Grüße 🌍"
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    raw = server.post("/api/chat", json={"model": "echo", "messages": user("Hi")})
    assert raw.headers["content-type"] == "application/x-ndjson"
    lines = [ollama.ChatResponse.model_validate(json.loads(line)) for line in raw.text.splitlines()]
    assert "".join(line.message.content or "" for line in lines) == "Hi"


def test_options_are_mapped(client: ollama.Client) -> None:
    cut = client.chat("hello", user("Hi"), options={"num_predict": 3, "num_thread": 2})
    assert (cut.message.content, cut.done_reason) == ("Hel", "length")
    assert client.chat("hello", user("Hi"), options={"stop": ["zz", " t"]}).message.content == (
        "Hello"
    )
    whole = client.chat("hello", user("Hi"), options={"num_predict": -2, "num_ctx": 64})
    assert whole.message.content == "Hello there."

    def sampled(seed: int) -> str | None:
        options = {"temperature": 2.0, "seed": seed, "num_predict": 20}
        return client.chat("hello", user("Hi"), options=options).message.content

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1
    with pytest.raises(ollama.ResponseError, match="mirostat"):
        client.chat("hello", user("Hi"), options={"mirostat": 2})
    with pytest.raises(ollama.ResponseError, match="context"):
        client.chat("hello", user("Hi"), options={"num_ctx": 10**6})


def test_tools_and_their_results(client: ollama.Client) -> None:
    reply = client.chat("echo", user(f"I look.\n{LIMA}"), tools=[weather])
    [made] = reply.message.tool_calls or []
    assert (made.function.name, made.function.arguments) == ("weather", {"city": "Lima"})
    assert reply.message.content == "I look."
    pieces = client.chat("echo", user(LIMA), tools=[weather], stream=True)
    calls = [c.function.arguments for p in pieces for c in p.message.tool_calls or []]
    assert calls == [{"city": "Lima"}]
    # Results name their tool, or nothing.
    for named in ({"tool_name": "weather"}, {}):
        turns = [
            *user("How is it?"),
            reply.message,
            {"role": "tool", "content": "21", **named},
            *user("Thanks"),
        ]
        again = client.chat("echo", turns, tools=[weather])
        assert again.message.content == "Thanks"
    with pytest.raises(ollama.ResponseError, match=r"messages\.1|answers no call"):
        client.chat("echo", [*user("Hi"), {"role": "tool", "content": "21"}])


class Place(BaseModel):
    city: str
    degrees: int


def test_formats(client: ollama.Client) -> None:
    asked = '{"city":"Lima","degrees":21} or so'
    held = client.chat("echo", user(asked), format=Place.model_json_schema())
    assert Place.model_validate_json(held.message.content or "") == Place(city="Lima", degrees=21)
    free = client.generate("echo", '{"a":1}', format="json")
    assert json.loads(free.response) == {"a": 1}


def test_generate(client: ollama.Client) -> None:
    reply = client.generate("echo", "Hi", system="Echo.")
    assert (reply.response, reply.done_reason) == ("Hi", "stop")
    assert reply.prompt_eval_count == len("system: Echo.\nuser: Hi\n") + 1
    pieces = list(client.generate("echo", "Grüße", stream=True))
    assert "".join(piece.response for piece in pieces) == "Grüße"
    # No template, and no limit.
    raw = client.generate("hello", "Say \x02", raw=True)
    assert (raw.response, raw.prompt_eval_count) == ("Hello there.", len("Say \x02"))
    with pytest.raises(ollama.ResponseError, match="suffix"):
        client.generate("hello", "a", suffix="b")


def test_models(client: ollama.Client, server: Served) -> None:
    assert [model.model for model in client.list().models] == ["echo", "hello"]
    shown = client.show("hello:latest")
    assert shown.capabilities == ["completion"]
    assert "version" in server.get("/api/version").json()
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("absent")
    assert (caught.value.status_code, "absent" in caught.value.error) == (404, True)


def test_a_model_is_loaded_and_unloaded_without_a_question() -> None:
    models = FakeModels(hello=FakeEngine)
    with served(models, idle_seconds=1000) as running:
        client = ollama.Client(running.url, timeout=20)
        assert client.ps().models == []
        # Nothing is loaded to be unloaded.
        assert client.generate("hello", keep_alive=0).done_reason == "unload"
        assert models.loads == []
        assert client.chat("hello").done_reason == "load"
        [loaded] = client.ps().models
        assert (loaded.model, loaded.size) == ("hello", 1000)
        assert client.generate("hello", keep_alive=-1).done_reason == "load"
        assert models.loads == ["hello"]
        assert client.generate("hello", keep_alive="0s").done_reason == "unload"


def test_errors_have_ollamas_form(client: ollama.Client, server: Served) -> None:
    with pytest.raises(ollama.ResponseError, match="'absent'") as caught:
        client.chat("absent", user("Hi"))
    assert caught.value.status_code == 404
    wrong = server.post("/api/chat", json={"model": "hello", "messages": 3})
    assert (wrong.status_code, list(wrong.json())) == (400, ["error"])
    assert "messages" in wrong.json()["error"]
