"""What browsers, proxies and clients need around the answers: headers, pings, model data."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest
from support.fake_engine import FakeEngine
from support.served import EchoEngine, FakeModels, Gate, client_of, served, user, wait_for

from edgesdk.errors import ContextOverflow
from edgesdk.server import event_stream
from edgesdk.server.api_errors import to_api_error

pytestmark = pytest.mark.e2e
CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "hello", "messages": user("Hi")}
# As openai-node sends them.
STAINLESS = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-retry-count"


def preflight(url: str, origin: str) -> httpx.Response:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": STAINLESS,
        "access-control-request-private-network": "true",
    }
    return httpx.options(url + CHAT, headers=asked)


@pytest.mark.parametrize("allowed", ["http://localhost:3000", "*"])
def test_a_browsers_client_gets_through(allowed: str) -> None:
    origin = "http://localhost:3000"
    with served(FakeModels(hello=FakeEngine), origins=(allowed,)) as server:
        answer = preflight(server.url, origin)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in (origin, "*")
        assert answer.headers["access-control-allow-private-network"] == "true"
        taken = answer.headers["access-control-allow-headers"].lower().split(",")
        assert {name.strip() for name in taken} >= set(STAINLESS.split(","))
        said = server.post(CHAT, json=ASK, headers={"origin": origin})
        assert said.headers["access-control-allow-origin"] in (origin, "*")
        assert "x-request-id" in said.headers["access-control-expose-headers"]
        if allowed != "*":
            assert preflight(server.url, "https://evil.example").status_code == 400
            refused = server.post(CHAT, json=ASK, headers={"origin": "https://evil.example"})
            assert refused.status_code == 403


def test_a_refused_page_is_told_which_option_helps() -> None:
    with served(FakeModels(hello=FakeEngine)) as server:
        for refused in (
            server.post(CHAT, json=ASK, headers={"origin": "https://a.example"}),
            preflight(server.url, "https://a.example"),
        ):
            assert refused.status_code == 403
            assert "--origin 'https://a.example'" in refused.json()["error"]["message"]
        own = server.post(CHAT, json=ASK, headers={"origin": server.url})
        assert own.status_code == 200


def test_either_header_has_the_key() -> None:
    with served(FakeModels(hello=FakeEngine), api_key="sesame") as server:
        for headers, status in (
            ({"x-api-key": "sesame"}, 200),
            ({"authorization": "Bearer sesame"}, 200),
            ({"x-api-key": "other"}, 401),
            ({"authorization": "Basic sesame"}, 401),
            ({}, 401),
        ):
            assert server.post(CHAT, json=ASK, headers=headers).status_code == status


def test_each_request_has_an_id() -> None:
    with served(FakeModels(hello=FakeEngine)) as server:
        first, second = (server.post(CHAT, json=ASK).headers["x-request-id"] for _ in range(2))
        assert first != second
        own = server.post(CHAT, json=ASK, headers={"x-request-id": "mine-1"})
        assert own.headers["x-request-id"] == "mine-1"
        assert len(server.get("/absent").headers["x-request-id"]) == 32
        odd = server.post(CHAT, json=ASK, headers={"x-request-id": "x" * 500})
        assert odd.headers["x-request-id"] == "x" * 128


def test_the_words_by_which_clients_know_an_overflow() -> None:
    error = to_api_error(ContextOverflow("It is long.", tokens=99, limit=63), param="messages")
    said = str(openai.BadRequestError(
        json.dumps(error.body()), response=httpx.Response(400, request=httpx.Request("POST", "/")),
        body=None,
    ))  # fmt: skip
    # LiteLLM's, LangChain's and CrewAI's.
    assert "this model's maximum context length is 64 tokens" in said.lower()
    assert "context_length_exceeded" in said


def test_what_a_model_can_do_and_whether_it_is_loaded() -> None:
    with served(FakeModels(hello=FakeEngine, echo=EchoEngine)) as server:
        server.post(CHAT, json=ASK)
        found = {model["id"]: model for model in server.get("/v1/models").json()["data"]}
        assert {name: model["loaded"] for name, model in found.items()} == {
            "hello": True,
            "echo": False,
        }
        assert found["hello"]["capabilities"] == ["completion", "chat"]
        assert server.get("/v1/models/HELLO:latest").json()["id"] == "hello"


@pytest.mark.parametrize("stream", [False, True])
def test_timings_are_those_of_the_receipt(stream: bool) -> None:
    with served(FakeModels(hello=FakeEngine)) as server, client_of(server) as client:
        reply: Any = client.chat.completions.create(**ASK, stream=stream)
        last = list(reply)[-1] if stream else reply
        timings = last.timings
        assert timings["prompt_n"] + timings["cache_n"] == len("user: Hi\n") + 1
        assert timings["predicted_n"] == len("Hello there.")
        for name in ("prompt", "predicted"):
            per_token = timings[f"{name}_ms"] / timings[f"{name}_n"]
            assert timings[f"{name}_per_token_ms"] == pytest.approx(per_token)
            assert timings[f"{name}_per_second"] == pytest.approx(1000 / per_token)


def test_a_stream_is_not_silent_while_a_long_prompt_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_stream, "_PING_SECONDS", 0.05)
    gate = Gate(shut=True)
    models = FakeModels(hello=lambda: FakeEngine(before_extend=gate))
    with served(models) as server:
        asked = {**ASK, "stream": True}
        with httpx.stream("POST", server.url + CHAT, json=asked, timeout=20) as response:
            lines = response.iter_lines()
            assert [next(lines), next(lines), next(lines)] == [": ping", "", ": ping"]
            gate.open()
            rest = [line for line in lines if line and not line.startswith(":")]
        assert rest[-1] == "data: [DONE]"
        words = [json.loads(line[6:])["choices"][0]["delta"].get("content") for line in rest[:-1]]
        assert "".join(word or "" for word in words) == "Hello there."
        # Clients skip them.
        gate.shut()
        with client_of(server) as client:
            stream = client.chat.completions.create(**ASK, stream=True)
            gate.open()
            assert "".join(c.choices[0].delta.content or "" for c in stream) == "Hello there."


def test_a_model_stays_loaded_as_long_as_a_request_says() -> None:
    models = FakeModels(hello=FakeEngine, echo=EchoEngine)
    with served(models, idle_seconds=0.05) as server:

        def loaded(name: str) -> bool:
            return bool(server.get(f"/v1/models/{name}").json()["loaded"])

        server.post(CHAT, json={**ASK, "keep_alive": "10m"})
        server.post(CHAT, json={**ASK, "model": "echo", "keep_alive": 0})
        wait_for(lambda: not loaded("echo"))
        time.sleep(0.2)
        assert loaded("hello")
        server.post(CHAT, json={**ASK, "ttl": 0})
        wait_for(lambda: not loaded("hello"))
