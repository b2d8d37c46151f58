"""The server as a socket sees it: bytes, disconnects, and requests that nobody should send."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from support.fake_engine import FakeEngine
from support.served import EchoEngine, FakeModels, Gate, Served, served, wait_for

from edgesdk.generation.prefill import PREFILL_CHUNK
from edgesdk.server.api_requests import ChatRequest, CompletionRequest

pytestmark = pytest.mark.e2e
CHAT = "/v1/chat/completions"


def ask(model: str = "hello", text: str = "Hi", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0, **more}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    models = FakeModels(hello=FakeEngine, echo=EchoEngine)
    with served(models, body_limit=20_000) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def send(server: Served, request: dict[str, Any]) -> socket.socket:
    """A chat request on a socket of its own; the answer is left unread."""
    address = urlsplit(server.url)
    body = json.dumps(request).encode()
    connection = socket.create_connection((address.hostname, address.port), timeout=20)
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, whose shape must be OpenAI's."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return dict(error)


def samples(server: Served) -> dict[tuple[str, str], float]:
    """Metrics by name and by model, path or nothing."""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {
        (sample.name, sample.labels.get("model") or sample.labels.get("path", "")): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_stream_byte_by_byte(http: httpx.Client) -> None:
    response = http.post(CHAT, json=ask(stream=True, max_tokens=2))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *events, done, nothing = response.content.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    chunks = []
    for event in events:
        assert event.startswith(b"data: {")
        assert b"\n" not in event
        chunks.append(json.loads(event.removeprefix(b"data: ")))
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "H"},
        {"content": "e"},
        {},
    ]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_a_connection_idles_longer_than_clients_keep_theirs(server: Served) -> None:
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    place = connection.sock
    # Clients drop connections after 5 seconds; a server that does so too may do it first.
    time.sleep(6)
    connection.request("GET", "/health")
    assert connection.getresponse().read()
    assert connection.sock is place
    connection.close()


def test_a_character_is_never_cut(http: httpx.Client) -> None:
    response = http.post(CHAT, json=ask("echo", "a🌍é", stream=True))
    deltas = [
        json.loads(event.removeprefix("data: "))["choices"][0]["delta"].get("content")
        for event in response.text.split("\n\n")[:-2]
    ]
    assert deltas == ["", "a", "🌍", "é", None]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_answer_is_made(stream: bool) -> None:
    reached: list[int] = []

    def wait(sequence: Any) -> None:
        reached.append(1)
        gate(sequence)

    gate = Gate()
    models = FakeModels(slow=lambda: FakeEngine(b"x" * 3000, before_extend=wait))
    with served(models, parallel=1) as server:
        connection = send(server, ask("slow", stream=stream))
        wait_for(lambda: len(reached) > 2)
        gate.shut()
        connection.close()
        # Nothing is read on the engine's side, so only the disconnect can end this.
        at_most = len(reached) + 1
        wait_for(lambda: samples(server)["edgesdk_requests_total", CHAT] >= 1)
        gate.open()
        server.until(running=0, waiting=0)
        assert len(reached) <= at_most
        assert samples(server)["edgesdk_sequences_idle", ""] == 1
        assert server.post(CHAT, json=ask("slow", max_tokens=2)).status_code == 200


def test_a_client_that_leaves_during_prefill() -> None:
    gate = Gate(shut=True)
    engine = FakeEngine(context_length=10 * PREFILL_CHUNK, before_extend=gate)
    with served(FakeModels(slow=lambda: engine)) as server:
        connection = send(server, ask("slow", "x" * 8 * PREFILL_CHUNK))
        server.until(running=1)
        connection.close()
        wait_for(lambda: ("edgesdk_requests_total", CHAT) in samples(server))
        gate.open()
        server.until(running=0)
        # Not even the part that was under way was finished.
        assert engine.states[0].extended == []
        assert samples(server)["edgesdk_answers_total", "slow"] == 1


def test_a_client_that_leaves_the_queue() -> None:
    gate = Gate(shut=True)
    engine = FakeEngine(before_extend=gate)
    with served(FakeModels(slow=lambda: engine), parallel=1) as server:
        first = send(server, ask("slow"))
        server.until(running=1)
        second = send(server, ask("slow", "never answered"))
        server.until(running=1, waiting=1)
        second.close()
        server.until(running=1, waiting=0)
        gate.open()
        answer = b""
        while b"Hello there." not in answer:
            part = first.recv(10_000)
            assert part, answer
            answer += part
        first.close()
        server.until(running=0)
        assert len(engine.states) == 1


def test_a_client_that_leaves_while_its_model_is_loaded() -> None:
    gate = Gate(shut=True)
    engines: list[FakeEngine] = []

    def load() -> FakeEngine:
        gate(None)
        engines.append(FakeEngine())
        return engines[-1]

    models = FakeModels(slow=load, other=FakeEngine)
    with served(models, queue=1, max_models=2) as server:
        left = send(server, ask("slow"))
        wait_for(lambda: models.loads == ["slow"])
        server.until(waiting=1)
        left.close()
        # The load goes on, but nobody waits for it: the only place in the queue is free.
        server.until(waiting=0, running=0)
        assert server.post(CHAT, json=ask("other", max_tokens=2)).status_code == 200
        gate.open()
        wait_for(lambda: samples(server)["edgesdk_models_loaded", ""] == 2)
        assert engines[0].states == []
        # It was not in vain.
        assert server.post(CHAT, json=ask("slow", max_tokens=2)).status_code == 200
        assert models.loads == ["slow", "other"]


def test_metrics_count_what_happened() -> None:
    with served(FakeModels(hello=FakeEngine)) as server:
        for _ in range(2):
            assert server.post(CHAT, json=ask(text="Hi" * 9)).status_code == 200
        assert server.post(CHAT, json=ask("absent")).status_code == 404
        assert server.get("/nowhere").status_code == 404
        found = samples(server)
        prompt = len("user: \n") + 18 + 1
        assert found["edgesdk_prompt_tokens_total", "hello"] == 2 * prompt
        assert found["edgesdk_cached_tokens_total", "hello"] == prompt - 1
        assert found["edgesdk_output_tokens_total", "hello"] == 2 * len("Hello there.")
        assert found["edgesdk_time_to_first_token_seconds_count", "hello"] == 2
        assert found["edgesdk_tokens_per_second_count", "hello"] == 2
        assert found["edgesdk_models_loaded", ""] == 1
        assert found["edgesdk_model_bytes", ""] == 100
        assert found["edgesdk_model_memory_bytes", ""] == 1000
        assert found["edgesdk_requests_running", ""] == 0
        assert found["edgesdk_resident_memory_bytes", ""] > 1e6
        assert found["edgesdk_requests_total", "other"] == 1


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::", "localhost."]
)
def test_another_name_for_this_machine_is_refused(http: httpx.Client, host: str) -> None:
    response = http.get("/v1/models", headers={"host": host})
    assert response.status_code == 403
    assert error_of(response)["type"] == "permission_error"


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "[::1]:80", "LOCALHOST"])
def test_names_of_this_machine(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


def test_pages_of_other_origins_are_refused(http: httpx.Client) -> None:
    origin = {"origin": "https://evil.example"}
    assert http.post(CHAT, json=ask(), headers=origin).status_code == 403
    preflight = http.options(CHAT, headers={**origin, "access-control-request-method": "POST"})
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers


def test_origins_that_are_allowed() -> None:
    origin = "http://localhost:3000"
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with served(FakeModels(hello=FakeEngine), origins=(origin,), api_key="k") as server:
        preflight = httpx.options(server.url + CHAT, headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == origin
        headers = {"origin": origin, "authorization": "Bearer k"}
        answer = server.post(CHAT, json=ask(), headers=headers)
        assert answer.headers["access-control-allow-origin"] == origin
        refused = server.post(CHAT, json=ask(), headers={"origin": origin})
        assert refused.status_code == 401


def test_only_json_is_taken(http: httpx.Client) -> None:
    body = json.dumps(ask())
    plain = http.post(CHAT, content=body, headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    assert http.post(CHAT, content=body).status_code == 415
    named = {"content-type": "application/json; charset=utf-8"}
    assert http.post(CHAT, content=body, headers=named).status_code == 200


@pytest.mark.parametrize("size", [20_001, 300_000, 2_000_000])
def test_a_body_that_is_too_large(server: Served, size: int) -> None:
    body = json.dumps(ask(text="x" * size)).encode()
    response = server.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"


def test_paths_and_methods_that_do_not_exist(http: httpx.Client) -> None:
    for response, status in ((http.get("/v1/nowhere"), 404), (http.get(CHAT), 405)):
        assert response.status_code == status
        error_of(response)
    assert http.delete("/v1/models").status_code == 405


def post_raw(http: httpx.Client, path: str, body: bytes) -> httpx.Response:
    return http.post(path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "\\ud800"}',
        b"[" * 10_000,
        b'{"model": "hello", "messages": [{"role": "user", "content": "\\udc00"}]}',
        b'{"model": "hello", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "hello", "messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
        b'{"model": "hello", "messages": "x", "tools": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
)
def test_malformed_bodies(http: httpx.Client, body: bytes) -> None:
    response = post_raw(http, CHAT, body)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# Fields with values of any JSON type, in place of those that they should have.
FIELDS = [*ChatRequest.model_fields, *CompletionRequest.model_fields, "beam_width"]
fuzz = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), chat=st.booleans())
def test_no_field_makes_it_fail(http: httpx.Client, changes: dict[str, Any], chat: bool) -> None:
    path, base = (CHAT, ask(max_tokens=4)) if chat else ("/v1/completions", {"prompt": "\x02"})
    body = json.dumps({"model": "hello", "max_tokens": 4, **base, **changes}).encode()
    response = post_raw(http, path, body)
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        error_of(response)


@fuzz
@given(at=st.integers(0, 200), noise=st.binary(max_size=6), cut=st.integers(0, 12))
def test_no_bytes_make_it_fail(http: httpx.Client, at: int, noise: bytes, cut: int) -> None:
    body = json.dumps(ask(max_tokens=4, stop=["a", "b"], logit_bias={"65": 1.5})).encode()
    response = post_raw(http, CHAT, body[:at] + noise + body[at + cut :])
    assert response.status_code in (200, 400, 404)


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=200), line=st.sampled_from([b"", b"POST " + CHAT.encode() + b" "]))
def test_no_garbage_on_the_socket_stops_the_server(
    server: Served, data: bytes, line: bytes
) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(line + data + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(10_000):
            answer += part
    assert b" 500 " not in answer[:20]
    assert server.state()["status"] == "ok"
