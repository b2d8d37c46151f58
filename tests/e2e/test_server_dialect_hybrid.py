"""Other APIs on a server with a cloud: who answered, and that nothing that was shown changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.hybrid_served import hybrid_server
from support.served import Served, user
from support.talking_cloud import TalkingCloud, said

from edgesdk.server.hybrid_routing import HoldPolicy

pytestmark = pytest.mark.e2e

ASKED: dict[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 40, "messages": user("Hi")},
    "/v1/responses": {"input": "Hi"},
    "/api/chat": {"messages": user("Hi")},
}


@pytest.fixture(scope="module", params=["decision", "nothing"])
def server(request: pytest.FixtureRequest) -> Iterator[Served]:
    hold: HoldPolicy = request.param
    with (
        TalkingCloud(lambda body: said("The ", "answer.")) as cloud,
        hybrid_server(cloud, hold=hold) as (running, _),
    ):
        yield running


@pytest.mark.parametrize("path", ASKED)
def test_the_cloud_answers_where_the_device_is_unsure(server: Served, path: str) -> None:
    asked = {"model": "unsure", "stream": False, **ASKED[path]}
    reply = server.post(path, json=asked)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-edgesdk-route"] == reply.json()["edgesdk"]["route"] == "cloud"
    assert "The answer." in reply.text
    kept = server.post(path, json=asked, headers={"X-Edgesdk-Upload": "local_only"})
    assert kept.json()["edgesdk"]["route"] == "local"


@pytest.mark.parametrize("path", ASKED)
def test_a_stream_has_one_answer(server: Served, path: str) -> None:
    streamed = server.post(path, json={"model": "unsure", "stream": True, **ASKED[path]})
    assert streamed.status_code == 200
    assert "I am not sure" not in _text(streamed.text)
    assert _text(streamed.text) == "The answer."


def _text(stream: str) -> str:
    """The pieces of the answer, whatever the API."""
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if "{" in line]
    text = ""
    for chunk in map(json.loads, lines):
        delta = chunk.get("delta", "")
        text += delta if isinstance(delta, str) else delta.get("text", "")
        text += chunk.get("message", {}).get("content", "") if "done" in chunk else ""
    return text
