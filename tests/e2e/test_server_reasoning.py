"""A reasoning model on the server, as OpenAI's own client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.reasoning_models import SWITCHED
from support.script_engine import ScriptEngine
from support.served import FakeModels, Served, client_of, served, user

pytestmark = pytest.mark.e2e

THOUGHT = "<think>\nTwo and two.\n</think>\n\nFour."
ENGINES: list[ScriptEngine] = []


def _engine() -> ScriptEngine:
    ENGINES.append(ScriptEngine((THOUGHT,)))
    return ENGINES[-1]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeModels(template=SWITCHED, thinker=_engine)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def test_reasoning_has_a_field_of_its_own(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="thinker", messages=user("2+2?"), logprobs=True, temperature=0
    )
    [choice] = reply.choices
    assert choice.message.content == "Four."
    assert choice.message.reasoning_content == "Two and two."  # type: ignore[attr-defined]
    assert reply.usage is not None
    assert reply.usage.completion_tokens_details is not None
    details = reply.usage.completion_tokens_details
    assert details.reasoning_tokens == len("<think>\nTwo and two.\n</think>")
    assert reply.usage.completion_tokens == len(THOUGHT)
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(entry.token for entry in choice.logprobs.content) == "Four."


def test_reasoning_streams_before_the_answer(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(model="thinker", messages=user("2+2?"), stream=True)
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    texts = [delta.content or "" for delta in deltas]
    assert "".join(thoughts) == "Two and two."
    assert "".join(texts) == "Four."
    last = max(place for place, thought in enumerate(thoughts) if thought)
    assert not any(texts[:last])


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False, "unknown": 1}},
    ],
)
def test_a_client_turns_it_off(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    client.chat.completions.create(model="thinker", messages=user("2+2?"), extra_body=fields)
    assert "user: 2+2?\n<think>\n\n</think>\n\n\x02" in ENGINES[-1].prompts


def test_an_answer_is_taken_back_with_its_reasoning(client: openai.OpenAI) -> None:
    call = {"name": "add", "arguments": "{}"}
    client.chat.completions.create(
        model="thinker",
        messages=[
            *user("2+2?"),
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "I add.",
                "tool_calls": [{"id": "a", "type": "function", "function": call}],
            },  # type: ignore[list-item]
            {"role": "tool", "tool_call_id": "a", "content": "4"},
        ],
    )
    # The template keeps it since the user's latest message.
    assert "<think>\nI add.\n</think>" in ENGINES[-1].prompts[-1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_effort": "a lot"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_what_makes_no_sense_is_refused(server: Served, fields: dict[str, Any], param: str) -> None:
    body = {"model": "thinker", "messages": user("2+2?"), **fields}
    error = server.post("/v1/chat/completions", json=body).json()["error"]
    assert error["param"] == param
