"""No body of another API is too odd: each gets an answer, or a 4xx in that API's form."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.odd_json import ODD, places, with_odd
from support.script_engine import HERMES_TEMPLATE
from support.served import EchoEngine, FakeModels

from edgesdk.server.app import create_app
from edgesdk.server.service import Service
from edgesdk.server.settings import ServerSettings

pytestmark = pytest.mark.e2e

FORM = {"type": "object", "properties": {"city": {"type": "string"}}}
SHORT = {"model": "echo", "temperature": 0}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/messages",
        SHORT
        | {
            "max_tokens": 8,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "b", "signature": ""},
                        {"type": "tool_use", "id": "c", "name": "now", "input": {}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "c",
                            "content": [{"type": "text", "text": "d"}],
                            "is_error": True,
                        },
                        {
                            "type": "document",
                            "source": {"type": "text", "media_type": "text/plain", "data": "e"},
                        },
                    ],
                },
            ],
            "tools": [{"name": "now", "input_schema": FORM, "strict": True}],
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": FORM}},
            "stop_sequences": ["x"],
            "stream": True,
        },
    ),
    (
        "/v1/responses",
        SHORT
        | {
            "max_output_tokens": 8,
            "instructions": "Be brief.",
            "input": [
                {"role": "developer", "content": "a"},
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "b"}],
                },
                {
                    "type": "reasoning",
                    "id": "r",
                    "summary": [{"type": "summary_text", "text": "c"}],
                },
                {"type": "function_call", "call_id": "d", "name": "now", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "d", "output": "e"},
                {"type": "custom_tool_call", "call_id": "f", "name": "patch", "input": "g"},
                {"type": "custom_tool_call_output", "call_id": "f", "output": "h"},
            ],
            "tools": [
                {"type": "function", "name": "now", "parameters": FORM, "strict": False},
                {"type": "custom", "name": "patch"},
                {"type": "web_search"},
            ],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "now"}],
            },
            "text": {
                "format": {"type": "json_schema", "name": "n", "schema": FORM},
                "verbosity": "low",
            },
            "reasoning": {"effort": "low", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "metadata": {"a": "b"},
            "stream": True,
        },
    ),
    (
        "/api/chat",
        {
            "model": "echo",
            "options": {"num_predict": 8, "temperature": 0, "stop": ["x"], "num_ctx": 64},
            "messages": [
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": "",
                    "thinking": "b",
                    "tool_calls": [{"function": {"name": "now", "arguments": {}}}],
                },
                {"role": "tool", "content": "c", "tool_name": "now"},
            ],
            "tools": [{"type": "function", "function": {"name": "now", "parameters": FORM}}],
            "format": FORM,
            "keep_alive": "5m",
            "think": False,
        },
    ),
    (
        "/api/generate",
        {
            "model": "echo",
            "prompt": "a",
            "system": "b",
            "options": {"num_predict": 8},
            "raw": False,
        },
    ),
    ("/api/show", {"model": "echo"}),
    ("/tokenize", {"content": "a", "add_special": True, "with_pieces": True}),
    ("/detokenize", {"tokens": [97]}),
    ("/apply-template", {"messages": [{"role": "user", "content": "a"}]}),
]


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    """The application in this process, without a socket."""
    models = FakeModels(template=HERMES_TEMPLATE, echo=lambda: EchoEngine(context_length=2000))
    service = Service(models, ServerSettings(body_limit=200_000))
    with TestClient(create_app(service), "http://127.0.0.1", raise_server_exceptions=True) as made:
        yield made


def check(http: TestClient, path: str, body: bytes) -> int:
    """Raise unless the body gets an answer, or an error of the client's."""
    reply = http.post(path, content=body, headers={"content-type": "application/json"})
    status: int = reply.status_code
    assert status == 200 or 400 <= status < 500, (body, reply.text)
    if status == 200:
        assert "server failed" not in reply.text, body
        return status
    error = reply.json()["error"]
    message = error if path.startswith("/api/") else error["message"]
    assert 10 < len(message) < 1000
    assert not any(word in message for word in ("Traceback", "Error(", "object at 0x"))
    return status


def test_the_requests_that_are_changed_below_are_answered(http: TestClient) -> None:
    for path, request in REQUESTS:
        assert check(http, path, json.dumps(request).encode()) == 200


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_odd_values_in_every_place(http: TestClient, number: int) -> None:
    chance = random.Random(number)
    path, request = REQUESTS[number]
    for place in places(request):
        for odd in chance.sample(ODD, 6):
            check(http, path, with_odd(request, place, odd))


@pytest.mark.parametrize("number", ["NaN", "1e999"])
def test_numbers_that_json_has_not_are_not_sent_back(http: TestClient, number: str) -> None:
    tool = f'{{"type":"function","name":"now","parameters":{{"type":"object","default":{number}}}}}'
    body = f'{{"model":"echo","input":"a","tools":[{tool}]}}'.encode()
    assert check(http, "/v1/responses", body) == 400
