"""`edgesdk serve` with a real model, against the same model in this process.

In float32: with fewer bits, how much of a prompt is cached changes the rounding, and with it now
and then a word of a greedy answer.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel, Field
from support.served import wait_for

import edgesdk
from edgesdk.bundle.opening import Bundle

pytestmark = [pytest.mark.integration, pytest.mark.e2e]
LONG = "You are terse. " + "Facts: rivers run to the sea, and the sea is not full. " * 12


@pytest.fixture(scope="module")
def model(smollm2_fp32: Bundle) -> Iterator[edgesdk.Model]:
    with edgesdk.load(smollm2_fp32.path, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(
    smollm2_fp32: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """A client of a server process that has the bundle."""
    home: Path = tmp_path_factory.mktemp("home")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "edgesdk", "serve", str(smollm2_fp32.path)),
            *("--port", "0", "--threads", "1", "--grace", "1"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "EDGESDK_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as made:
            yield made
    finally:
        process.terminate()
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def name(client: openai.OpenAI) -> str:
    return next(iter(client.models.list())).id


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_the_answer_is_the_models_own(
    client: openai.OpenAI, name: str, model: edgesdk.Model
) -> None:
    asked: Any = [user("Name three rivers.")]
    alone = model.respond(asked, max_tokens=24)
    reply = client.chat.completions.create(
        model=name, messages=asked, max_tokens=24, temperature=0, logprobs=True, top_logprobs=2
    )
    [choice] = reply.choices
    assert choice.message.content == alone.text
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == alone.receipt.prompt_tokens
    assert reply.usage.completion_tokens == alone.receipt.output_tokens
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert b"".join(bytes(e.bytes or []) for e in entries).decode() == alone.text
    # Greedy takes the likeliest.
    assert all(e.top_logprobs[0].logprob == e.logprob for e in entries)

    completed = client.completions.create(
        model=name, prompt="The capital of France is", temperature=0, max_tokens=8
    )
    text = model.complete("The capital of France is", max_tokens=8).text
    assert completed.choices[0].text == text


def test_the_second_turn_computes_only_what_is_new(
    client: openai.OpenAI, name: str, model: edgesdk.Model
) -> None:
    talk: Any = [{"role": "system", "content": LONG}, user("Where do rivers run?")]
    first = client.chat.completions.create(model=name, messages=talk, temperature=0, max_tokens=12)
    talk += [{"role": "assistant", "content": first.choices[0].message.content}]
    talk += [user("And is it full?")]
    second = client.chat.completions.create(model=name, messages=talk, temperature=0, max_tokens=12)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens or 0
    assert cached >= first.usage.prompt_tokens - 1
    assert second.choices[0].message.content == model.respond(talk, max_tokens=12).text


def test_clients_at_the_same_time_get_what_each_would_get_alone(
    client: openai.OpenAI, name: str, model: edgesdk.Model
) -> None:
    questions = ["Count to five.", "What is DNS?", "Write a haiku.", "Is water wet?", "Say hi."]

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=str(client.base_url), api_key="x", max_retries=0
        ) as many:

            async def ask(text: str) -> str:
                stream = await many.chat.completions.create(
                    model=name,
                    messages=[{"role": "system", "content": LONG}, user(text)],  # type: ignore[list-item]
                    temperature=0,
                    max_tokens=10,
                    stream=True,
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(ask(question) for question in questions))

    got = asyncio.run(run())
    for question, text in zip(questions, got, strict=True):
        told = [{"role": "system", "content": LONG}, user(question)]
        assert model.respond(told, max_tokens=10).text == text


def test_a_client_that_leaves_ends_a_real_decode(client: openai.OpenAI, name: str) -> None:
    stream = client.chat.completions.create(
        model=name,
        messages=[user("Count to a thousand.")],
        stream=True,
        temperature=1,  # type: ignore[list-item]
    )
    next(stream)
    stream.close()
    metrics = str(client.base_url).replace("/v1/", "/metrics")
    ended = f'edgesdk_answers_total{{model="{name}",reason="cancelled"}} 1.0'
    wait_for(lambda: ended in httpx.get(metrics).text)


class River(BaseModel):
    name: Literal["Amazon", "Danube", "Nile"]
    length_km: int = Field(ge=1, le=9999)
    flows_into: list[Literal["ocean", "sea"]] = Field(min_length=1, max_length=2)


def test_an_answer_of_a_form_is_the_models_own(
    client: openai.OpenAI, name: str, model: edgesdk.Model
) -> None:
    asked: Any = [user("Tell me about the Nile as JSON.")]
    alone = model.respond(asked, schema=River, max_tokens=60)
    for stream in (False, True):
        if stream:
            with client.chat.completions.stream(
                model=name, messages=asked, response_format=River, temperature=0, max_tokens=60
            ) as events:
                [choice] = events.get_final_completion().choices
        else:
            reply = client.chat.completions.parse(
                model=name, messages=asked, response_format=River, temperature=0, max_tokens=60
            )
            [choice] = reply.choices
        assert choice.message.parsed == alone.parsed
        assert choice.message.content == alone.text
        assert choice.finish_reason == "stop"


def test_a_template_without_tools_is_said(client: openai.OpenAI, name: str) -> None:
    tool: Any = {"type": "function", "function": {"name": "now"}}
    reply = client.chat.completions.create(
        model=name,
        messages=[user("Hi")],
        tools=[tool],  # type: ignore[list-item]
        max_tokens=4,
    )
    assert reply.model_extra is not None
    assert reply.model_extra["edgesdk"]["tools"] == "generic"
