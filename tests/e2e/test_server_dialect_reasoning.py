"""A model that reasons, as Anthropic's, OpenAI's and Ollama's own clients see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest
from support.reasoning_models import SWITCHED
from support.script_engine import ScriptEngine
from support.served import EchoEngine, FakeModels, Served, client_of, served, user

pytestmark = pytest.mark.e2e

THOUGHT, ANSWER = "Two and two.", "Four."
# Where the template writes an empty one, the model has nothing to think.
SWITCHED_OFF = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def engine() -> ScriptEngine:
    return ScriptEngine((f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",))


@pytest.fixture(scope="module")
def server(engine: ScriptEngine) -> Iterator[Served]:
    models = FakeModels(template=SWITCHED, thinker=lambda: engine)
    with served(models) as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    """A server with a model that cannot reason."""
    with served(FakeModels(echo=EchoEngine)) as running:
        yield running


def claude(server: Served) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0)


def test_anthropics_thinking(server: Served, engine: ScriptEngine) -> None:
    asked: Any = {"model": "thinker", "max_tokens": 200, "messages": user("2+2?")}
    on: Any = {"type": "enabled", "budget_tokens": 1024}
    message = claude(server).messages.create(**asked, thinking=on)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, message.content[1].text) == (THOUGHT, ANSWER)
    with claude(server).messages.stream(**asked, thinking=on) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds.index("thinking") < kinds.index("text")
    assert (final.content[0].thinking, final.content[1].text) == (THOUGHT, ANSWER)
    # Sent back, it is the reasoning before what was said.
    turns = [*user("2+2?"), {"role": "assistant", "content": message.content}, *user("And?")]
    again = claude(server).messages.create(**{**asked, "messages": turns})
    assert again.stop_reason == "end_turn"
    off: Any = {"type": "disabled"}
    claude(server).messages.create(**asked, thinking=off)
    assert SWITCHED_OFF in engine.prompts[-1]
    few: Any = {"type": "enabled", "budget_tokens": 14}
    cut = claude(server).messages.create(**asked, thinking=few)
    assert len(cut.content[0].thinking) < len(THOUGHT)


def test_openais_reasoning_items(server: Served, engine: ScriptEngine) -> None:
    client = client_of(server)
    reply = client.responses.create(
        model="thinker", input="2+2?", reasoning={"effort": "low", "summary": "auto"}
    )
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.output[0].content[0].text == THOUGHT
    assert reply.output_text == ANSWER
    assert reply.usage is not None
    assert reply.usage.output_tokens_details.reasoning_tokens > len(THOUGHT)
    stream = client.responses.create(model="thinker", input="2+2?", stream=True)
    found = list(stream)
    deltas = [event.delta for event in found if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == THOUGHT
    assert found[-1].response.output[0].content[0].text == THOUGHT
    turns: Any = [*user("2+2?"), *(item.model_dump() for item in reply.output), *user("And?")]
    again = client.responses.create(model="thinker", input=turns, reasoning={"effort": "none"})
    assert again.status == "completed"
    assert SWITCHED_OFF in engine.prompts[-1]


def test_ollamas_thinking(server: Served, engine: ScriptEngine) -> None:
    client = ollama.Client(server.url)
    reply = client.chat("thinker", user("2+2?"), think=True)
    assert (reply.message.thinking, reply.message.content) == (THOUGHT, ANSWER)
    pieces = list(client.chat("thinker", user("2+2?"), think="high", stream=True))
    assert "".join(piece.message.thinking or "" for piece in pieces) == THOUGHT
    assert "".join(piece.message.content or "" for piece in pieces) == ANSWER
    generated = client.generate("thinker", "2+2?", think=True)
    assert (generated.thinking, generated.response) == (THOUGHT, ANSWER)
    client.chat("thinker", user("2+2?"), think=False)
    assert SWITCHED_OFF in engine.prompts[-1]


def test_a_model_that_cannot_reason(plain: Served) -> None:
    """Agents ask any model for an effort, so it is a hint; Ollama's clients know a refusal."""
    on: Any = {"type": "enabled", "budget_tokens": 1024}
    message = claude(plain).messages.create(
        model="echo", max_tokens=200, messages=user("Hi"), thinking=on
    )
    assert [block.type for block in message.content] == ["text"]
    reply = client_of(plain).responses.create(
        model="echo", input="Hi", reasoning={"effort": "medium"}
    )
    assert reply.output_text == "Hi"
    client = ollama.Client(plain.url)
    with pytest.raises(ollama.ResponseError, match="does not reason"):
        client.chat("echo", user("Hi"), think=True)
    assert client.chat("echo", user("Hi"), think=False).message.content == "Hi"
    with pytest.raises(openai.BadRequestError, match="does not reason"):
        client_of(plain).chat.completions.create(
            model="echo", messages=user("Hi"), reasoning_effort="medium"
        )
