"""Fields that clients of other servers send, as OpenAI's own client sends them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from support.fake_engine import FakeEngine
from support.served import EchoEngine, FakeModels, Gate, Served, client_of, served, user

from edgesdk.server.api_requests import ChatRequest, CompletionRequest, parse
from edgesdk.server.request_fields import ALIASES, IGNORED, REFUSED

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeModels(echo=EchoEngine, hello=FakeEngine)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def ask(client: openai.OpenAI, text: str = "Hi", model: str = "hello", **body: Any) -> Any:
    messages = body.pop("messages", user(text))
    return client.chat.completions.create(model=model, messages=messages, extra_body=body)


def continued(client: openai.OpenAI, prompt: Any, **body: Any) -> Any:
    return client.completions.create(model="hello", prompt=prompt, extra_body=body)


def test_what_changes_nothing_is_left_out(client: openai.OpenAI) -> None:
    ignored: dict[str, Any] = {
        name: {"any": "thing"} for names in IGNORED.values() for name in names
    }
    ignored["litellm_call_id"] = "x"
    neutral = {name: values[0] for name, values in REFUSED.items() if values}
    nulls = dict.fromkeys([*ChatRequest.model_fields, *REFUSED, *ALIASES, "anything"])
    wanted = {"model": "hello", "messages": user("Hi")}
    body = {**nulls, **ignored, **neutral, **wanted}
    reply = client.post("/chat/completions", body=body, cast_to=dict)
    assert reply["choices"][0]["message"]["content"] == "Hello there."


@pytest.mark.parametrize("name", [*REFUSED, "frobnicate"])
def test_what_would_change_the_answer_is_refused_by_name(client: openai.OpenAI, name: str) -> None:
    refused: Any = {name: "other"}
    with pytest.raises(openai.BadRequestError, match=name) as caught:
        ask(client, **refused)
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


def test_a_slip_of_the_pen_is_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Did you mean temperature"):
        ask(client, temprature=1)


def test_other_names_of_a_field(client: openai.OpenAI) -> None:
    for name in ("n_predict", "max_new_tokens", "num_predict", "max_completion_tokens"):
        limit: Any = {name: 3}
        assert ask(client, **limit).choices[0].message.content == "Hel"
    assert ask(client, max_tokens=-1, seed=-1, top_k=-1).choices[0].message.content
    assert all(alias not in ChatRequest.model_fields for alias in ALIASES)
    assert not REFUSED.keys() & ChatRequest.model_fields.keys()


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat", {"stop": 3}, "stop"),
        ("chat", {"stop": ["a", 3]}, "stop.1"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, None),
        ("chat", {"keep_alive": "soon"}, "keep_alive"),
        ("chat", {"num_ctx": 10**7}, "num_ctx"),
        ("text", {"prompt": {"a": 1}}, "prompt"),
        ("text", {"prompt": [[1], ["x"]]}, "prompt.1.0"),
        ("text", {"prompt": []}, "prompt"),
        ("text", {"prompt": "a", "best_of": 3}, "best_of"),
        ("text", {"n": 129}, "n"),
        ("chat", {"seed": 2**63}, "seed"),
    ],
)
def test_the_field_that_is_wrong_is_named(
    client: openai.OpenAI, path: str, body: dict[str, Any], param: str | None
) -> None:
    paths = {"chat": "/chat/completions", "text": "/completions"}
    usual = {"model": "hello", "messages": user("Hi")} if path == "chat" else {"model": "hello"}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(paths[path], body={**usual, **body}, cast_to=dict)
    assert caught.value.param == (param or "messages.0.content.0.text")


def test_an_answer_goes_on_with_the_assistants_message(client: openai.OpenAI) -> None:
    messages = [*user("Hi there"), {"role": "assistant", "content": "Hi t"}]
    assert ask(client, model="echo", messages=messages).choices[0].message.content == "here"
    explicit = ask(
        client,
        model="echo",
        messages=messages,
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert explicit.choices[0].message.content == "here"
    anew = ask(client, model="echo", messages=messages, continue_final_message=False)
    # The fake's template ends the message with a line feed of its own.
    assert anew.choices[0].message.content == "Hi there\n"
    with pytest.raises(openai.BadRequestError):
        ask(client, continue_final_message=True)


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "hello", "messages": user("Hi"), "n": 3, "seed": 1}
    if stream:
        usage: Any = {"include_usage": True}
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options=usage))
        texts = ["", "", ""]
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        ends = [c.choices[0].index for c in chunks if c.choices and c.choices[0].finish_reason]
        assert sorted(ends) == [0, 1, 2]
        counted, ids = chunks[-1].usage, {chunk.id for chunk in chunks}
    else:
        reply = client.chat.completions.create(**asked)
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        texts = [str(choice.message.content) for choice in reply.choices]
        counted, ids = reply.usage, {reply.id}
        assert "timings" not in (reply.model_extra or {})
    assert len(ids) == 1
    # They are sampled, each by a seed of its own.
    assert len(set(texts)) == 3
    assert counted.prompt_tokens == len("user: Hi\n") + 1
    assert counted.total_tokens == counted.prompt_tokens + counted.completion_tokens
    assert counted.completion_tokens >= sum(map(len, texts)) - 3


def test_several_prompts(client: openai.OpenAI) -> None:
    prompts = ["a \x02", "b \x02", "c \x02"]
    reply = continued(client, prompts, max_tokens=5, n=2, temperature=0)
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert {choice.text for choice in reply.choices} == {"Hello"}
    assert reply.usage.prompt_tokens == 3 * 3
    assert reply.usage.completion_tokens == 6 * 5
    ids = continued(client, [[97, 2], [98, 2]], max_tokens=5)
    assert [choice.text for choice in ids.choices] == ["Hello", "Hello"]
    mixed = continued(client, ["a \x02", [98, 2]], max_tokens=5)
    assert [choice.text for choice in mixed.choices] == ["Hello", "Hello"]
    # More than may wait: they take turns.
    many = continued(client, ["a \x02"] * 100, max_tokens=1)
    assert len(many.choices) == 100


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_all_of_its_answers(stream: bool) -> None:
    gate = Gate(shut=True)
    models = FakeModels(slow=lambda: FakeEngine(before_extend=gate))
    with served(models, parallel=2) as server:
        asked = {"model": "slow", "prompt": ["a \x02"] * 9, "stream": stream}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json=asked, timeout=0.5)
        gate.open()
        server.until(running=0, waiting=0)


def test_a_request_of_several_fails_as_a_whole(client: openai.OpenAI, server: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        continued(client, [[2], [300]], max_tokens=5)
    assert caught.value.param == "prompt.1.0"
    server.until(running=0, waiting=0)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_the_prompt_with_its_log_probabilities(client: openai.OpenAI, max_tokens: int) -> None:
    # The token that opens an answer has no text.
    tokens = ["x", "", *"Hel", *("l" if max_tokens else "")]
    reply = continued(
        client, "x\x02Hel", echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
    )
    [choice] = reply.choices
    assert choice.text == "".join(tokens)
    found = choice.logprobs
    assert found.tokens == tokens
    assert found.text_offset == [0, 1, *range(1, len(choice.text))]
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    # The fake's likeliest token has this one; each that is further has less by a half.
    likeliest = -math.log(sum(math.exp(-0.5 * distance) for distance in range(256)))
    assert found.token_logprobs[2:] == pytest.approx([likeliest] * (3 + max_tokens), abs=1e-5)
    assert reply.usage.completion_tokens == max_tokens


def test_an_echo_without_log_probabilities_is_streamed(client: openai.OpenAI) -> None:
    chunks = client.completions.create(
        model="hello", prompt="x\x02Hel", max_tokens=3, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == "xHello "


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"guided_json": {"enum": [7]}}, "7"),
        ({"guided_json": '{"enum": [7]}'}, "7"),
        ({"guided_regex": "[0-9]{3}"}, None),
        ({"guided_choice": ["yes", "no"]}, None),
        ({"guided_grammar": 'start: "abc"'}, "abc"),
        ({"structured_outputs": {"json": {"enum": [7]}}}, "7"),
        ({"structured_outputs": {"regex": "a{4}"}}, "aaaa"),
        ({"structured_outputs": {"choice": ["only"]}}, "only"),
        ({"structured_outputs": {"grammar": 'root ::= "abc"'}}, "abc"),
        ({"grammar": 'root ::= "a" [b] "c"'}, "abc"),
        ({"json_schema": {"enum": [7]}}, "7"),
        ({"response_format": {"type": "json_object", "schema": {"enum": [7]}}}, "7"),
    ],
)
def test_output_formats_by_their_other_names(
    client: openai.OpenAI, body: dict[str, Any], expected: str | None
) -> None:
    content = ask(client, "~", **body).choices[0].message.content
    text = client.completions.create(model="hello", prompt="~\x02", extra_body=body).choices[0].text
    for answer in (content, text):
        assert answer == (expected or answer)
        assert answer in ("yes", "no") or len(answer) < 5


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"grammar": 'root ::= ("a"'}, "grammar"),
        ({"guided_regex": "(?=a)"}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_json": "nothing"}, "guided_json"),
        ({"structured_outputs": {"json": {"type": "x"}}}, "structured_outputs.json"),
        ({"guided_regex": "a", "grammar": 'root ::= "a"'}, "guided_regex"),
    ],
)
def test_formats_that_cannot_be_enforced(
    client: openai.OpenAI, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **body)
    assert caught.value.param == param


def test_what_ends_an_answer(client: openai.OpenAI) -> None:
    assert ask(client, ignore_eos=True, max_tokens=300).usage.completion_tokens == 300
    longer = ask(client, min_tokens=20, max_tokens=40)
    assert longer.choices[0].message.content.startswith("Hello there.")
    assert longer.usage.completion_tokens >= 20
    stopped = ask(client, stop_token_ids=[ord("o")])
    assert stopped.choices[0].message.content == "Hell"
    assert stopped.choices[0].finish_reason == "stop"


def test_the_model_that_a_client_means(client: openai.OpenAI) -> None:
    for name in ("hello:latest", "Hello", "HELLO:latest"):
        assert ask(client, model=name).choices[0].message.content == "Hello there."
    with pytest.raises(openai.BadRequestError, match="echo, hello") as caught:
        ask(client, model="")
    assert caught.value.param == "model"
    with served(FakeModels(hello=FakeEngine)) as server, client_of(server) as alone:
        reply = ask(alone, model="")
        assert (reply.model, reply.choices[0].message.content) == ("hello", "Hello there.")


def test_options_of_a_completion() -> None:
    def limit(**fields: Any) -> int | None:
        body = json.dumps({"model": "m", "prompt": "p", **fields}).encode()
        return parse(CompletionRequest, body).options(deadline=1.0).max_tokens

    assert (limit(), limit(max_tokens=-1), limit(n_predict=7)) == (16, None, 7)
