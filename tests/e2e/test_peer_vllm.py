"""vLLM's own tests of its OpenAI server (tests/entrypoints/openai), as far as they are about text.

The model is another one, so expected words became properties, and prompts are shorter.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from support.peer_server import PeerServer
from support.served import served

from edgesdk.server.model_pool import StoreModels
from edgesdk.store import Store

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]
MODEL = "SmolLM2-135M-Instruct.Q4_1"
SUM: list[Any] = [
    {"role": "system", "content": "you are a helpful assistant"},
    {"role": "user", "content": "what is 1+1?"},
]
IDS = [57, 57, 57, 57, 57]
EMPLOYEE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "skills": {
            "type": "array",
            "items": {"type": "string", "maxLength": 5},
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["name", "age", "skills"],
    "additionalProperties": False,
}
IP_ADDRESS = r"((25[0-5]|(2[0-4]|1\d|[1-9]|)\d)\.){3}(25[0-5]|(2[0-4]|1\d|[1-9]|)\d)"
LANGUAGES = ["Python", "Java", "C++", "Rust"]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12, "default": "Vienna"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "options": {"$ref": "#/$defs/WeatherOptions"},
            },
            "required": ["city", "unit"],
            "$defs": {
                "WeatherOptions": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"include_forecast": {"type": "boolean"}},
                }
            },
        },
    },
}
NAMED = {"type": "function", "function": {"name": "get_current_weather"}}


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerServer]:
    store = Store(tmp_path_factory.mktemp("store"))
    with served(StoreModels([str(smollm2_gguf)], store=store, context=1024)) as running:
        yield PeerServer(running.url)


@pytest.fixture(scope="module")
def client(server: PeerServer) -> Iterator[openai.OpenAI]:
    with server.client as made:
        yield made


def chat(client: openai.OpenAI, **body: Any) -> Any:
    """A short chat; what OpenAI's client does not know goes with `extra_body`."""
    asked = {"model": MODEL, "messages": SUM, "temperature": 0.0, "max_completion_tokens": 5}
    return client.chat.completions.create(**{**asked, **body})


def text(client: openai.OpenAI, **body: Any) -> Any:
    asked = {"model": MODEL, "prompt": "Hello, my name is", "max_tokens": 5, "temperature": 0.0}
    return client.completions.create(**{**asked, **body})


# chat_completion/test_chat.py


def test_no_logprobs_chat(client: openai.OpenAI) -> None:
    assert chat(client, logprobs=False).choices[0].logprobs is None


@pytest.mark.parametrize("count", [0, 5])
def test_zero_and_some_logprobs_chat(client: openai.OpenAI, count: int) -> None:
    listed = chat(client, logprobs=True, top_logprobs=count).choices[0].logprobs
    assert len(listed.content[0].top_logprobs) == count


def test_too_many_chat_logprobs(client: openai.OpenAI) -> None:
    for count, stream in ((21, True), (30, False)):
        with pytest.raises(openai.BadRequestError):
            chat(client, logprobs=True, top_logprobs=count, stream=stream)
    assert chat(client).choices[0].message.content is not None


def test_single_chat_session(client: openai.OpenAI) -> None:
    first = chat(client, logprobs=True, top_logprobs=5)
    assert first.id
    [choice] = first.choices
    assert choice.finish_reason == "length"
    assert first.usage.completion_tokens == 5
    assert first.usage.total_tokens == first.usage.prompt_tokens + 5
    assert (choice.message.role, bool(choice.message.content)) == ("assistant", True)
    more = [
        *SUM,
        {"role": "assistant", "content": choice.message.content},
        {"role": "user", "content": "express your result in json"},
    ]
    assert chat(client, messages=more).choices[0].message.content is not None


def test_chat_streaming(client: openai.OpenAI) -> None:
    whole = chat(client).choices[0]
    chunks = list(chat(client, stream=True))
    assert {c.choices[0].delta.role for c in chunks} == {"assistant", None}
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert [reason for reason in reasons if reason] == [whole.finish_reason]
    assert reasons[-1] == whole.finish_reason
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.message.content


def test_chat_completion_stream_options(client: openai.OpenAI) -> None:
    silent = chat(client, stream=True, stream_options={"include_usage": False})
    assert all(chunk.usage is None for chunk in silent)
    counted = {"include_usage": True, "continuous_usage_stats": False}
    *chunks, last = chat(client, stream=True, stream_options=counted)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    usage = last.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
    for options in ({"include_usage": None}, {"include_usage": True}):
        with pytest.raises(openai.BadRequestError):
            chat(client, stream=False, stream_options=options)
    longer = chat(
        client,
        max_completion_tokens=10,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"min_tokens": 10},
    )
    assert list(longer)[-1].usage.completion_tokens == 10


def test_structured_outputs_choice_chat(client: openai.OpenAI) -> None:
    extra = {"structured_outputs": {"choice": LANGUAGES}}
    assert chat(client, extra_body=extra).choices[0].message.content in LANGUAGES


def test_structured_outputs_json_chat(client: openai.OpenAI) -> None:
    extra = {"structured_outputs": {"json": EMPLOYEE}}
    reply = chat(client, extra_body=extra, max_completion_tokens=120)
    jsonschema.validate(json.loads(reply.choices[0].message.content), EMPLOYEE)


def test_structured_outputs_regex_chat(client: openai.OpenAI) -> None:
    extra = {"structured_outputs": {"regex": IP_ADDRESS}}
    reply = chat(client, extra_body=extra, max_completion_tokens=30)
    assert re.fullmatch(IP_ADDRESS, reply.choices[0].message.content)


def test_structured_outputs_type_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        chat(client, extra_body={"structured_outputs": {"regex": {1: "Python", 2: "C++"}}})


def test_structured_outputs_choice_chat_logprobs(client: openai.OpenAI) -> None:
    extra = {"structured_outputs": {"choice": LANGUAGES}}
    reply = chat(client, logprobs=True, top_logprobs=5, extra_body=extra)
    likely = reply.choices[0].logprobs.content[0].top_logprobs
    assert all(each.logprob >= -9999.0 for each in likely)


def test_response_format_json_object(client: openai.OpenAI) -> None:
    reply = chat(
        client,
        messages=[{"role": "user", "content": 'Respond with {"result": 2} as JSON.'}],
        response_format={"type": "json_object"},
        max_completion_tokens=60,
    )
    [choice] = reply.choices
    assert choice.message.content.startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_response_format_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"result": {"type": "integer", "maximum": 9, "minimum": 0}},
        # A small model goes on and on with other properties, where it may.
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "foo_test", "schema": schema}}
    reply = chat(client, response_format=form, max_completion_tokens=40)
    jsonschema.validate(json.loads(reply.choices[0].message.content), schema)


def test_response_format_text(client: openai.OpenAI) -> None:
    assert chat(client, response_format={"type": "text"}).choices[0].message.content is not None


def test_extra_fields_allowed(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "what is 1+1?", "extra_field": "0"}]
    assert chat(client, messages=messages, seed=0).choices[0].message.content is not None


def test_complex_message_content(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "what is 1+1?"}]
    contents = [
        chat(client, messages=[{"role": "user", "content": each}]).choices[0].message.content
        for each in (parts, "what is 1+1?")
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**63])
def test_long_seed(client: openai.OpenAI, seed: int) -> None:
    with pytest.raises(openai.BadRequestError, match=r"(greater|less) than"):
        chat(client, seed=seed)


def test_chat_completion_n_parameter_non_streaming(client: openai.OpenAI) -> None:
    reply = chat(client, max_completion_tokens=12, temperature=0.7, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) > 1


def test_chat_completion_n_parameter_streaming(client: openai.OpenAI) -> None:
    pieces: dict[int, str] = defaultdict(str)
    for chunk in chat(client, max_completion_tokens=10, temperature=0.7, n=2, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert sorted(pieces) == [0, 1]
    assert all(pieces.values())


def test_chat_completion_n_with_seed(client: openai.OpenAI) -> None:
    choices = chat(client, temperature=0.8, n=2, seed=42).choices
    assert [choice.index for choice in choices] == [0, 1]
    assert all(choice.message.content for choice in choices)


def test_chat_completion_n_equals_1(client: openai.OpenAI) -> None:
    [choice] = chat(client, temperature=0.7, n=1).choices
    assert (choice.index, bool(choice.message.content)) == (0, True)


# chat_completion/test_chat_logit_bias_validation.py, test_chat_stop_token_ids_validation.py


def test_chat_logit_bias_valid(client: openai.OpenAI) -> None:
    assert chat(client, logit_bias={"100": 1.0}).choices[0].message.content is not None


def test_chat_logit_bias_invalid(client: openai.OpenAI) -> None:
    for token in ("99999999", "-1"):
        with pytest.raises(openai.BadRequestError):
            chat(client, logit_bias={token: 1.0})


def test_chat_stop_token_ids(client: openai.OpenAI) -> None:
    listed = chat(client, logprobs=True).choices[0]
    ids = [2, 0, *range(40, 49_000)]
    stopped = chat(client, extra_body={"stop_token_ids": ids})
    assert len(stopped.choices[0].message.content) < len(listed.message.content)
    with pytest.raises(openai.BadRequestError):
        chat(client, extra_body={"stop_token_ids": ["x"]})


# basic/test_chat_echo.py, basic/test_basic.py


def test_chat_session_with_continue_final_message(client: openai.OpenAI) -> None:
    saying = "Here is a common saying about apple. An apple a day, keeps"
    reply = chat(
        client,
        messages=[
            {"role": "user", "content": "tell me a common saying"},
            {"role": "assistant", "content": saying},
        ],
        extra_body={"continue_final_message": True, "add_generation_prompt": False, "echo": False},
    )
    [choice] = reply.choices
    assert choice.finish_reason in ("stop", "length")
    assert choice.message.content
    assert saying not in choice.message.content


def test_check_health(server: PeerServer) -> None:
    assert server.get("/health").status_code == 200


def test_request_cancellation(server: PeerServer, client: openai.OpenAI) -> None:
    async def ask_and_leave() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=0.5
        ) as impatient:
            asked = [
                impatient.chat.completions.create(
                    model=MODEL, messages=SUM, max_tokens=900, extra_body={"min_tokens": 900}
                )
                for _ in range(20)
            ]
            found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(error) for error in found} == {openai.APITimeoutError}

    asyncio.run(ask_and_leave())
    assert chat(client).choices


def test_request_wrong_content_type(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError):
        chat(client, extra_headers={"Content-Type": "application/x-www-form-urlencoded"})


# completion/test_completion.py


def test_single_completion(client: openai.OpenAI) -> None:
    reply = text(client)
    assert reply.id
    [choice] = reply.choices
    assert (bool(choice.text), choice.finish_reason) == (True, "length")
    usage = reply.usage
    assert (usage.completion_tokens, usage.total_tokens) == (5, usage.prompt_tokens + 5)
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert text(client, prompt=IDS).choices[0].text


def test_no_logprobs(client: openai.OpenAI) -> None:
    assert text(client, prompt=IDS, logprobs=None).choices[0].logprobs is None


@pytest.mark.parametrize("count", [0, 5])
def test_zero_and_some_logprobs(client: openai.OpenAI, count: int) -> None:
    listed = text(client, prompt=IDS, logprobs=count).choices[0].logprobs
    assert len(listed.token_logprobs) == 5
    # The token that was chosen is always there.
    assert max(count, 1) <= len(listed.top_logprobs[0]) <= count + 1


def test_too_many_completion_logprobs(client: openai.OpenAI) -> None:
    for count, stream in ((21, False), (30, True)):
        with pytest.raises(openai.BadRequestError):
            text(client, prompt=IDS, logprobs=count, stream=stream)
    assert text(client, prompt=IDS).choices


def test_completion_streaming(client: openai.OpenAI) -> None:
    whole = text(client).choices[0]
    chunks = list(text(client, stream=True))
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert "".join(c.choices[0].text for c in chunks) == whole.text


def test_parallel_no_streaming(client: openai.OpenAI) -> None:
    reply = text(client, n=3, temperature=1.0, logprobs=0, seed=42, max_tokens=12)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert all(choice.finish_reason for choice in reply.choices)
    assert len({choice.text for choice in reply.choices}) == 3


def test_parallel_streaming(client: openai.OpenAI) -> None:
    pieces: dict[int, str] = defaultdict(str)
    ends = []
    for chunk in text(client, n=3, temperature=1.0, seed=42, max_tokens=12, stream=True):
        [choice] = chunk.choices
        pieces[choice.index] += choice.text
        ends += [choice.index] if choice.finish_reason else []
    assert sorted(ends) == [0, 1, 2]
    assert len(set(pieces.values())) == 3


def test_completion_stream_options(client: openai.OpenAI) -> None:
    for options in ({"include_usage": False, "continuous_usage_stats": False}, {}):
        chunks = text(client, stream=True, stream_options=options)
        assert all(chunk.usage is None for chunk in chunks)
    *chunks, last = text(client, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.completion_tokens) == ([], 5)
    for wrong in ({"include_usage": None}, {"continuous_usage_stats": None}):
        with pytest.raises(openai.BadRequestError):
            text(client, stream=False, stream_options=wrong)


def test_batch_completions(client: openai.OpenAI) -> None:
    for prompts in (["Hello, my name is"] * 2, [IDS] * 2):
        choices = text(client, prompt=prompts).choices
        assert choices[0].text == choices[1].text
        assert len(text(client, prompt=prompts, n=2, temperature=1.0).choices) == 4
        pieces = ["", ""]
        for chunk in text(client, prompt=prompts, stream=True):
            pieces[chunk.choices[0].index] += chunk.choices[0].text
        assert pieces == [choices[0].text] * 2


@pytest.mark.parametrize("count", [0, 1])
def test_echo_logprob_completion(client: openai.OpenAI, count: int) -> None:
    for prompt in ("Hello, my name is", IDS):
        [choice] = text(client, prompt=prompt, echo=True, logprobs=count).choices
        assert isinstance(prompt, list) or choice.text.startswith(prompt)
        listed = choice.logprobs
        lengths = {len(column) for column in (listed.tokens, listed.text_offset)}
        assert lengths == {len(listed.token_logprobs)}
        assert len(listed.tokens) > 5
        assert (listed.token_logprobs[0], listed.top_logprobs[0]) == (None, None)
        assert all(max(count, 1) <= len(likely) <= count + 1 for likely in listed.top_logprobs[1:])


@pytest.mark.parametrize(
    "outputs",
    [
        {"json": {**EMPLOYEE, "properties": {"foo": "bar"}}},
        {"regex": r"[.*"},
        {"grammar": 'root ::= select_statementinvalidsyntax\n\ncolumn ::= "col_1 "'},
    ],
    ids=["test_invalid_json_schema", "test_invalid_regex", "test_invalid_grammar"],
)
def test_invalid_outputs(client: openai.OpenAI, outputs: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        text(client, extra_body={"structured_outputs": outputs}, stop=["\n"])


# completion/test_prompt_validation.py


def test_empty_prompt(client: openai.OpenAI) -> None:
    for prompt in (None, "", []):
        with pytest.raises(openai.BadRequestError):
            text(client, prompt=prompt)


def test_out_of_vocab_token_ids(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="tokens of this model are from 0"):
        text(client, prompt=[999_999])


# chat_completion/test_completion_with_function_calling.py, test_tool_choice_null.py


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_function_tool_use(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    asked = {"tools": [WEATHER], "tool_choice": choice, "max_completion_tokens": 120}
    reply = chat(client, **asked, stream=stream)
    if stream:
        chunks = list(reply)
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
        calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        arguments = "".join(call.function.arguments or "" for call in calls)
        assert sum(chunk.choices[0].finish_reason is not None for chunk in chunks) == 1
    else:
        [made] = reply.choices[0].message.tool_calls
        arguments = made.function.arguments
    jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])


@pytest.mark.parametrize("arguments", ["{}", ""])
def test_no_args_tool_call(client: openai.OpenAI, arguments: str) -> None:
    function = {"name": "get_current_time", "parameters": {"type": "object", "properties": {}}}
    tools: Any = [{"type": "function", "function": function}]
    made = {"id": "c", "type": "function", "function": {"name": "get_current_time"}}
    made["function"]["arguments"] = arguments  # type: ignore[index]
    messages = [
        {"role": "user", "content": "What time is it now?"},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c", "content": "12:00"},
    ]
    first = chat(client, messages=messages[:1], tools=tools, tool_choice="auto")
    assert first.choices[0].message
    assert chat(client, messages=messages).choices[0].message.content


def test_inconsistent_tool_choice_and_tools(client: openai.OpenAI) -> None:
    absent = {"type": "function", "function": {"name": "nondefined_function_name"}}
    for more in (
        {"tool_choice": NAMED},
        {"tools": [WEATHER], "tool_choice": absent},
        {"tools": [WEATHER], "tool_choice": {}},
    ):
        with pytest.raises(openai.BadRequestError):
            chat(client, **more)


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_max_tokens_with_tool_choice_required(client: openai.OpenAI, choice: Any) -> None:
    reply = chat(client, max_completion_tokens=1, tools=[WEATHER], tool_choice=choice)
    [made] = reply.choices
    assert made.finish_reason == "length"
    assert not made.message.tool_calls
    assert not made.message.content


def test_tool_choice_null(client: openai.OpenAI) -> None:
    extra = {"tool_choice": None, "tools": None}
    assert chat(client, extra_body=extra).choices[0].message.content


def test_non_object_body(server: PeerServer) -> None:
    for body in ([], "text", 3):
        refused = server.post("/v1/chat/completions", body)  # type: ignore[arg-type]
        assert refused.status_code == 400
        assert refused.json()["error"]["message"]


LEFT_OUT = {
    "vLLM's prompt_logprobs; echo with logprobs gives the same for completions": (
        *("test_prompt_logprobs_chat", "test_more_than_one_prompt_logprobs_chat"),
        *("test_prompt_logprobs_completion", "test_prompt_logprobs"),
    ),
    "vLLM's prompts that are cut from the left or right": (
        "test_completion_truncation_side_controls_prompt_truncation",
    ),
    "roles are OpenAI's; a template would write others, which its model does not know": (
        "test_custom_role",
    ),
    "vLLM's own endpoints": ("test_show_version", "test_server_load", "test_invocations"),
    "it tests a function inside of vLLM": (
        *("test_health_check_engine_dead_error", "test_load_prompt_embeds"),
    ),
    "vLLM's prompts as embeddings": ("test_disable_prompt_embeds",),
    "values are not converted: 'true' and -1 are refused": ("test_top_logprobs",),
}


@pytest.mark.parametrize(
    ("name", "reason"), [(name, reason) for reason, names in LEFT_OUT.items() for name in names]
)
def test_a_scenario_that_is_left_out(name: str, reason: str) -> None:
    assert name not in globals()
    pytest.skip(reason)
