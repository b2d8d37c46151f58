"""No body is too odd: each gets an answer, or a 4xx that says what is wrong with it."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from support.odd_json import ODD, places, with_odd
from support.served import TOOL_TEMPLATE, EchoEngine, FakeModels, Served, served

from edgesdk.server.app import create_app
from edgesdk.server.service import Service
from edgesdk.server.settings import ServerSettings

pytestmark = pytest.mark.e2e
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"

FORM = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z][a-z]+$", "maxLength": 9},
        "days": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 1, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "d", "parameters": FORM}},
    {"type": "function", "function": {"name": "now", "strict": True}},
]
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
PLAIN: dict[str, Any] = {
    "model": "echo",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Grüße 🌍"}]},
    ],
    "temperature": 0,
    "max_tokens": 8,
}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (CHAT, PLAIN),
    (CHAT, PLAIN | {"stream": True, "stream_options": {"include_usage": True}, "stop": ["e", "x"]}),
    (CHAT, PLAIN | {"logprobs": True, "top_logprobs": 2, "seed": -3, "logit_bias": {"65": -1.5}}),
    (CHAT, PLAIN | {"response_format": {"type": "json_object"}}),
    (
        CHAT,
        PLAIN
        | {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": FORM, "strict": True},
            }
        },
    ),
    (CHAT, PLAIN | {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}),
    (
        CHAT,
        PLAIN | {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "now"}}},
    ),
    (
        CHAT,
        PLAIN
        | {
            "tools": TOOLS[:1],
            "stream": True,
            "messages": [
                {"role": "user", "content": '<tool_call>{"name": "now"}</tool_call>'},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
            ],
        },
    ),
    (COMPLETION, {"model": "echo", "prompt": "user: a\n\x02", "max_tokens": 4, "logprobs": 1}),
    (
        COMPLETION,
        {"model": "echo", "prompt": [117, 2], "max_tokens": 4, "stream": True, "top_p": 0.5},
    ),
]


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    """The application in this process, without a socket."""
    models = FakeModels(template=TOOL_TEMPLATE, echo=lambda: EchoEngine(context_length=2000))
    service = Service(models, ServerSettings(body_limit=200_000))
    with TestClient(create_app(service), "http://127.0.0.1", raise_server_exceptions=True) as made:
        yield made


def check(response: httpx.Response) -> None:
    """Raise unless it is an answer, or an error of the client's in OpenAI's shape."""
    if response.status_code == 200:
        if response.headers["content-type"].startswith("text/event-stream"):
            *events, done, nothing = response.text.split("\n\n")
            assert (done, nothing) == ("data: [DONE]", "")
            found = [json.loads(event.removeprefix("data: ")) for event in events]
            assert all("error" not in event for event in found)
            assert any(c["finish_reason"] for event in found for c in event["choices"])
        else:
            assert response.json()["choices"][0]["finish_reason"]
        return
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    # A sentence, which shows nothing of the program's inside.
    assert 10 < len(error["message"]) < 1000
    assert not any(word in error["message"] for word in ("Traceback", "Error(", "object at 0x"))
    assert error["param"] is None or isinstance(error["param"], str)


def post(http: TestClient, path: str, body: bytes) -> httpx.Response:
    return http.post(path, content=body, headers={"content-type": "application/json"})


def test_the_requests_that_are_changed_below_are_answered(http: TestClient) -> None:
    for path, request in REQUESTS:
        response = post(http, path, json.dumps(request).encode())
        assert response.status_code == 200, response.text
        check(response)


def every_place() -> list[tuple[int, tuple[Any, ...]]]:
    return [(n, path) for n, (_, request) in enumerate(REQUESTS) for path in places(request)]


@pytest.mark.parametrize("part", range(4))
def test_odd_values_in_every_place(http: TestClient, part: int) -> None:
    chance = random.Random(part)
    for number, path in every_place()[part::4]:
        where, request = REQUESTS[number]
        for odd in chance.sample(ODD, 4):
            check(post(http, where, with_odd(request, path, odd)))


Mutation = Callable[[random.Random, bytes], bytes]


def _flipped(chance: random.Random, body: bytes) -> bytes:
    at = chance.randrange(len(body))
    return body[:at] + bytes([body[at] ^ 1 << chance.randrange(8)]) + body[at + 1 :]


def _cut(chance: random.Random, body: bytes) -> bytes:
    a, b = sorted(chance.choices(range(len(body) + 1), k=2))
    return body[:a] + body[b:] if chance.random() < 0.5 else body[:a]


def _repeated(chance: random.Random, body: bytes) -> bytes:
    a, b = sorted(chance.choices(range(len(body) + 1), k=2))
    return body[:b] + body[a:b] * chance.randrange(1, 4) + body[b:]


def _noisy(chance: random.Random, body: bytes) -> bytes:
    at = chance.randrange(len(body))
    return body[:at] + chance.randbytes(chance.randrange(1, 9)) + body[at:]


def _swapped(chance: random.Random, body: bytes) -> bytes:
    tokens = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"1", b"-", b"e", b"\\u"]
    old, new = chance.sample(tokens, 2)
    return body.replace(old, new, chance.randrange(1, 3))


MUTATIONS: list[Mutation] = [_flipped, _cut, _repeated, _noisy, _swapped]


@pytest.mark.parametrize("seed", range(6))
def test_changed_bytes(http: TestClient, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(150):
        path, request = chance.choice(REQUESTS)
        body = json.dumps(request, ensure_ascii=chance.random() < 0.5).encode()
        for _ in range(chance.choice([1, 1, 2, 4])):
            body = chance.choice(MUTATIONS)(chance, body) or b" "
        check(post(http, path, body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYWORDS = st.sampled_from(
    [
        *("type", "properties", "required", "items", "enum", "const", "anyOf", "oneOf", "allOf"),
        *("not", "pattern", "format", "minimum", "maximum", "multipleOf", "minLength", "$ref"),
        *("maxLength", "minItems", "maxItems", "prefixItems", "additionalProperties", "$defs"),
        *("patternProperties", "propertyNames", "minProperties", "if", "x-guidance", "$schema"),
        *("contains", "uniqueItems", "dependentRequired", "$id", "$anchor", "description"),
    ]
)
SCHEMAS = st.recursive(
    JSON | st.sampled_from(["string", "object", "#", "#/$defs/a", "(a+)+$", "[", "uuid", 1e300]),
    lambda inner: (
        st.dictionaries(KEYWORDS, inner, max_size=4)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=12,
)
fuzz = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@fuzz
@given(schema=st.dictionaries(KEYWORDS, SCHEMAS, max_size=4), stream=st.booleans())
def test_any_schema_as_the_form(http: TestClient, schema: dict[str, Any], stream: bool) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = json.dumps(PLAIN | {"response_format": form, "stream": stream}).encode()
    check(post(http, CHAT, body))


@fuzz
@given(
    schema=st.dictionaries(KEYWORDS, SCHEMAS, max_size=4),
    choice=st.sampled_from(["auto", "required"]) | JSON,
    answer=JSON,
    strict=st.booleans(),
)
def test_any_schema_as_parameters(
    http: TestClient, schema: dict[str, Any], choice: Any, answer: Any, strict: bool
) -> None:
    call = json.dumps({"name": "f", "arguments": answer})
    function = {"name": "f", "parameters": schema, "strict": strict}
    request = PLAIN | {
        "messages": [{"role": "user", "content": f"<tool_call>{call}</tool_call>"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": choice,
        "max_tokens": 60,
    }
    check(post(http, CHAT, json.dumps(request).encode()))


@fuzz
@given(
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
            optional={
                "content": st.none() | st.text(max_size=5),
                "tool_calls": st.lists(
                    st.fixed_dictionaries(
                        {
                            "id": st.sampled_from(["a", "b"]),
                            "function": st.fixed_dictionaries(
                                {
                                    "name": st.sampled_from(["f", ""]),
                                    "arguments": st.sampled_from(["{}", "[", ""]),
                                }
                            ),
                        }
                    ),
                    max_size=2,
                ),
                "tool_call_id": st.sampled_from(["a", "b"]),
                "name": st.text(max_size=3),
            },
        ),
        max_size=5,
    )
)
def test_any_conversation(http: TestClient, messages: list[Any]) -> None:
    check(post(http, CHAT, json.dumps(PLAIN | {"messages": messages, "tools": TOOLS}).encode()))


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeModels(template=TOOL_TEMPLATE, echo=EchoEngine)) as running:
        yield running


BODY = json.dumps(PLAIN).encode()


@pytest.mark.parametrize(
    ("head", "body", "statuses"),
    [
        (f"Content-Length: {len(BODY) - 3}", BODY, {400}),
        (f"Content-Length: {len(BODY)}", BODY + b"GET / HTTP/1.1\r\n", {200}),
        # None: the client goes away before its body is whole, and nobody is there to be told.
        (f"Content-Length: {len(BODY) + 9}", BODY, {400, None}),
        (f"Content-Length: {len(BODY)}", BODY[:20], {400, None}),
        ("Content-Length: 0", b"", {400}),
        ("Content-Length: -5", BODY, {400}),
        ("Content-Length: many", BODY, {400}),
        (f"Content-Length: {'9' * 50}", BODY, {400, None}),
        (f"Content-Length: 5\r\nContent-Length: {len(BODY)}", BODY, {400}),
        ("Transfer-Encoding: chunked", b"zz\r\n" + BODY, {400, None}),
        ("Transfer-Encoding: chunked", b'5\r\n{"mod', {400, None}),
        ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), {200}),
        ("Transfer-Encoding: gzip", BODY, {400, 501}),
        ("X-Nothing: of a body", b"", {400}),
    ],
)
def test_bodies_that_are_not_as_their_headers_say(
    server: Served, head: str, body: bytes, statuses: set[int | None]
) -> None:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        opening = f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        connection.sendall(f"{opening}Content-Type: application/json\r\n{head}\r\n\r\n".encode())
        # The server may have answered and gone already.
        with suppress(OSError):
            connection.sendall(body)
            if None in statuses:
                connection.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(100_000):
                answer += part
    assert (int(answer.split(b" ", 2)[1]) if answer else None) in statuses
    server.until(running=0, waiting=0, status="ok")
