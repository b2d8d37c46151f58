"""What the server tells of tokens, as llama.cpp's and vLLM's do; and paths without a version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.fake_engine import FakeEngine
from support.served import FakeModels, Served, served, user

pytestmark = pytest.mark.e2e

SAID = "user: Hi\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeModels(hello=FakeEngine)) as running:
        yield running


def post(server: Served, path: str, **body: Any) -> Any:
    reply = server.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_tokenize_and_back(server: Served) -> None:
    # The fake's tokens are bytes; without a model's name the only one is meant.
    there = post(server, "/tokenize", content="Grüße")
    assert there["tokens"] == list("Grüße".encode())
    assert post(server, "/detokenize", tokens=there["tokens"])["content"] == "Grüße"
    pieces = post(server, "/tokenize", content="aü", with_pieces=True)["tokens"]
    assert pieces == [
        {"id": 97, "piece": "a"},
        {"id": 195, "piece": [195]},
        {"id": 188, "piece": [188]},
    ]
    wrong = server.post("/detokenize", json={"tokens": [1, 256]})
    assert (wrong.status_code, "0 to 255" in wrong.text) == (400, True)
    nothing = server.post("/tokenize", json={"model": "hello"})
    assert nothing.status_code == 400


def test_vllms_form(server: Served) -> None:
    text = post(server, "/tokenize", model="hello", prompt="Hi")
    assert text == {"tokens": [72, 105], "count": 2, "max_model_len": 4096}
    chat = post(server, "/tokenize", model="hello", messages=user("Hi"), return_token_strs=True)
    assert (chat["count"], "".join(chat["token_strs"])) == (len(SAID) + 1, SAID)
    assert post(server, "/detokenize", model="hello", tokens=[72, 105])["prompt"] == "Hi"


def test_the_prompt_of_a_chat(server: Served) -> None:
    # The byte that opens an answer is a control token without a name.
    assert post(server, "/apply-template", messages=user("Hi")) == {"prompt": SAID}


def test_props(server: Served) -> None:
    told = server.get("/props").json()
    assert told["default_generation_settings"]["n_ctx"] == 4096
    assert (told["model_alias"], told["total_slots"]) == ("hello", 4)
    assert "add_generation_prompt" in told["chat_template"]
    assert server.get("/props", params={"model": "absent"}).status_code == 404


def test_paths_without_a_version(server: Served) -> None:
    asked = {"model": "hello", "messages": user("Hi"), "max_tokens": 50}
    assert post(server, "/chat/completions", **asked)["object"] == "chat.completion"
    assert post(server, "/completions", prompt="\x02")["object"] == "text_completion"
    assert post(server, "/responses", input="Hi")["object"] == "response"
    assert post(server, "/messages", **asked)["type"] == "message"
    assert [model["id"] for model in server.get("/models").json()["data"]] == ["hello"]
    lines = server.get("/metrics").text.splitlines()
    assert any('path="/chat/completions"' in line for line in lines)
