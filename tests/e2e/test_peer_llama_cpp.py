"""llama.cpp's own server tests (tools/server/tests/unit), as far as they are about text.

What they ask of `/completion`, llama-server's own endpoint, is asked of `/v1/completions` here. The
model is another one, so expected words became properties.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.peer_server import PeerServer
from support.served import served

from edgesdk.server.model_pool import StoreModels
from edgesdk.store import Store

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BOOK: list[Any] = [
    {"role": "system", "content": "Book"},
    {"role": "user", "content": "What is the best book"},
]
MEANING = "I believe the meaning of life is"
KEY = "sk-this-is-the-secret-key"


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerServer]:
    store = Store(tmp_path_factory.mktemp("store"))
    with served(StoreModels([str(smollm2_gguf)], store=store, context=512)) as running:
        yield PeerServer(running.url)


def chat(server: PeerServer, **body: Any) -> httpx.Response:
    return server.post(CHAT, {"messages": BOOK, "max_tokens": 8, **body})


# test_basic.py


def test_server_start_simple(server: PeerServer) -> None:
    assert server.get("/health").status_code == 200


def test_server_start_with_host_family(server: PeerServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert server.get("/health").json()["status"] == "ok"


def test_server_props(server: PeerServer) -> None:
    props = server.get("/props").json()
    assert props["total_slots"] >= 1
    assert props["default_generation_settings"]["n_ctx"] == 512


def test_server_models(server: PeerServer) -> None:
    [model] = server.get("/models").json()["data"]
    assert model["id"].startswith("SmolLM2")
    assert model["context_length"] == 512


# test_chat_completion.py


def test_chat_completion(server: PeerServer) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " the best book"}]
    contents = []
    for asked in ("What is the best book", parts):
        response = chat(server, model=None, messages=[BOOK[0], {"role": "user", "content": asked}])
        assert response.status_code == 200
        body = response.json()
        assert "cmpl" in body["id"]
        assert body["system_fingerprint"]
        assert body["usage"]["completion_tokens"] == 8
        [choice] = body["choices"]
        assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "length")
        contents.append(choice["message"]["content"])
    assert contents[0] == contents[1] != ""


def test_chat_completion_stream(server: PeerServer) -> None:
    options = {"stream_options": {"include_usage": True}}
    first, *rest = server.stream(CHAT, {"messages": BOOK, "max_tokens": 8, **options})
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert len({event["id"] for event in (first, *rest)}) == 1
    *pieces, last, usage = rest
    assert all("role" not in piece["choices"][0]["delta"] for piece in pieces)
    assert {piece["choices"][0]["finish_reason"] for piece in pieces} == {None}
    assert last["choices"][0]["finish_reason"] == "length"
    assert "content" not in last["choices"][0]["delta"]
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 8)


def test_chat_completion_with_openai_library(server: PeerServer) -> None:
    reply = server.client.chat.completions.create(
        model="", messages=BOOK, max_tokens=8, seed=42, temperature=0.8
    )
    assert reply.system_fingerprint
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].message.content


def test_chat_template_assistant_prefill(server: PeerServer) -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ill"}]
    asked = [[*BOOK, {"role": "assistant", "content": begun}] for begun in ("Whill", parts)]
    bodies = [chat(server, messages=messages).json() for messages in asked]
    assert bodies[0]["choices"] == bodies[1]["choices"]
    anew = chat(server, messages=asked[0], continue_final_message=False).json()
    # The template closes no turn after it.
    assert bodies[0]["usage"]["prompt_tokens"] < anew["usage"]["prompt_tokens"]


def test_chat_template(server: PeerServer) -> None:
    prompt = server.post("/apply-template", {"messages": BOOK}).json()["prompt"]
    assert prompt == (
        "<|im_start|>system\nBook<|im_end|>\n<|im_start|>user\nWhat is the best book<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    begun = [*BOOK, {"role": "assistant", "content": "Whill"}]
    assert server.post("/apply-template", {"messages": begun}).json()["prompt"] == f"{prompt}Whill"


def test_apply_chat_template(server: PeerServer) -> None:
    messages = [{"role": "system", "content": "You are a test."}, BOOK[1]]
    prompt = server.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert prompt.startswith("<|im_start|>system\nYou are a test.<|im_end|>\n")
    assert prompt.endswith("<|im_start|>assistant\n")


def test_completion_with_response_format(server: PeerServer) -> None:
    for wanted, content in (
        ({"type": "json_object", "schema": {"const": "42"}}, '"42"'),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "foooooo"}}}, '"foooooo"'),
        ({"type": "json_object"}, r"\{.*"),
    ):
        answer = chat(server, response_format=wanted).json()["choices"][0]["message"]["content"]
        assert re.fullmatch(content, answer, re.DOTALL), answer
    for wrong in (
        {"type": "sound"},
        {"type": "json_object", "schema": 123},
        {"type": "json_object", "schema": {"type": 123}},
        {"type": "json_object", "schema": {"type": "hiccup"}},
    ):
        refused = chat(server, response_format=wrong)
        assert refused.status_code == 400
        assert "error" in refused.json()


def test_completion_with_json_schema(server: PeerServer) -> None:
    reply = chat(server, json_schema={"const": "42"}).json()
    assert reply["choices"][0]["message"]["content"] == '"42"'


def test_completion_with_grammar(server: PeerServer) -> None:
    reply = chat(server, grammar='root ::= "a"{5,5}').json()
    assert reply["choices"][0]["message"]["content"] == "aaaaa"


def test_invalid_chat_completion_req(server: PeerServer) -> None:
    for messages in (
        None,
        "string",
        [123],
        [{}],
        [{"role": 123}],
        [{"role": "system", "content": 123}],
        [{"role": "system", "content": "test"}, {}],
    ):
        refused = server.post(CHAT, {"messages": messages})
        assert refused.status_code == 400
        assert "error" in refused.json()


def test_chat_completion_with_timings_per_token(server: PeerServer) -> None:
    options = {"stream_options": {"include_usage": True}, "timings_per_token": True}
    events = server.stream(CHAT, {"messages": BOOK, "max_tokens": 10, **options})
    assert "timings" not in events[0]
    assert events[-1]["choices"] == []
    timings = events[-1]["timings"]
    assert {"prompt_per_second", "predicted_per_second"} <= timings.keys()
    assert timings["predicted_n"] <= 10


def test_logprobs(server: PeerServer) -> None:
    reply: Any = server.client.chat.completions.create(
        model="", messages=BOOK, max_tokens=5, temperature=0, logprobs=True, top_logprobs=10
    )
    tokens = reply.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == reply.choices[0].message.content
    assert all(token.logprob <= 0 and token.bytes and token.top_logprobs for token in tokens)


def test_logprobs_stream(server: PeerServer) -> None:
    chunks: Any = server.client.chat.completions.create(
        model="", messages=BOOK, max_tokens=5, logprobs=True, top_logprobs=10, stream=True
    )
    text, tokens = "", []
    for chunk in chunks:
        text += chunk.choices[0].delta.content or ""
        tokens += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert "".join(token.token for token in tokens) == text
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 10 for token in tokens)


def test_context_size_exceeded(server: PeerServer) -> None:
    refused = chat(server, messages=BOOK * 100)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "512" in error["message"]


def test_context_size_exceeded_stream(server: PeerServer) -> None:
    refused = chat(server, messages=BOOK * 100, stream=True)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_chat_completions_multiple_choices(server: PeerServer) -> None:
    choices = chat(server, n=2).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert {choice["finish_reason"] for choice in choices} == {"length"}
    assert all(choice["message"]["content"] for choice in choices)


# test_completion.py


def test_completion(server: PeerServer) -> None:
    body = server.post(TEXT, {"prompt": MEANING, "n_predict": 8}).json()
    assert body["timings"]["predicted_n"] == 8
    timings = body["timings"]
    assert timings["prompt_n"] + timings["cache_n"] == body["usage"]["prompt_tokens"]
    assert body["choices"][0]["text"]


def test_completion_stream(server: PeerServer) -> None:
    *pieces, last = server.stream(TEXT, {"prompt": MEANING, "n_predict": 8})
    assert "".join(piece["choices"][0]["text"] for piece in pieces)
    assert last["timings"]["predicted_n"] == 8
    assert last["choices"][0]["finish_reason"] == "length"


def test_completion_stream_vs_non_stream(server: PeerServer) -> None:
    asked = {"prompt": MEANING, "n_predict": 8}
    events = server.stream(TEXT, asked)
    whole = server.post(TEXT, asked).json()["choices"][0]["text"]
    assert "".join(event["choices"][0]["text"] for event in events) == whole


def test_completion_with_openai_library(server: PeerServer) -> None:
    reply = server.client.completions.create(model="", prompt=MEANING, max_tokens=8)
    assert reply.system_fingerprint
    assert reply.choices[0].finish_reason == "length"
    assert reply.choices[0].text


def test_completion_stream_with_openai_library(server: PeerServer) -> None:
    chunks = server.client.completions.create(model="", prompt=MEANING, max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks)


def test_completion_stream_with_openai_library_stops(server: PeerServer) -> None:
    prompt = "Assistant:\nHow can I help?\nUser:\nTell me a joke.\nAssistant:\n"
    chunks = server.client.completions.create(
        model="", prompt=prompt, max_tokens=60, stop=["User:\n", "Assistant:\n"], stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert "User:\n" not in text
    assert "Assistant:\n" not in text


def test_consistent_result_same_seed(server: PeerServer) -> None:
    asked = {"prompt": MEANING, "seed": 42, "temperature": 0.0, "cache_prompt": False}
    texts = {server.post(TEXT, asked).json()["choices"][0]["text"] for _ in range(4)}
    assert len(texts) == 1


def test_different_result_different_seed(server: PeerServer) -> None:
    asked = {"prompt": MEANING, "temperature": 1.0, "cache_prompt": False}
    texts = [server.post(TEXT, {**asked, "seed": n}).json()["choices"][0]["text"] for n in range(4)]
    assert len(set(texts)) == 4


def test_cache_vs_nocache_prompt(server: PeerServer) -> None:
    asked = {"prompt": MEANING, "seed": 42, "temperature": 1.0}
    first, second = (
        server.post(TEXT, {**asked, "cache_prompt": cached}).json()["choices"][0]["text"]
        for cached in (True, False)
    )
    assert first == second


def test_nocache_long_input_prompt(server: PeerServer) -> None:
    refused = server.post(TEXT, {"prompt": MEANING * 90, "seed": 42, "cache_prompt": False})
    assert refused.status_code == 400


def test_completion_with_tokens_input(server: PeerServer) -> None:
    ids = [57, 2667, 260, 3099]
    one = server.post(TEXT, {"prompt": ids, "max_tokens": 4}).json()
    assert isinstance(one["choices"][0]["text"], str)
    for prompts in ([ids, ids], [MEANING, MEANING], [ids, MEANING]):
        choices = server.post(TEXT, {"prompt": prompts, "max_tokens": 4}).json()["choices"]
        assert len(choices) == 2
        assert (choices[0]["text"] == choices[1]["text"]) == (prompts[0] == prompts[1])


def test_completion_parallel_slots(server: PeerServer) -> None:
    prompts = ["Write a very long book.", "What is LLM?", "The sky is blue and I love it."] * 2
    found: list[dict[str, Any]] = []

    def ask(prompt: str) -> None:
        body = {"prompt": prompt, "seed": 42, "temperature": 1.0, "max_tokens": 6}
        found.append(server.post(TEXT, body).json())

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(prompts)
    assert all(isinstance(body["choices"][0]["text"], str) for body in found)


def test_n_probs(server: PeerServer) -> None:
    body = server.post(TEXT, {"prompt": MEANING, "logprobs": 10, "max_tokens": 5}).json()
    listed = body["choices"][0]["logprobs"]
    assert len(listed["tokens"]) == 5
    assert all(logprob <= 0 for logprob in listed["token_logprobs"])
    assert all(9 <= len(likely) <= 11 for likely in listed["top_logprobs"])


def test_n_probs_stream(server: PeerServer) -> None:
    events = server.stream(TEXT, {"prompt": MEANING, "logprobs": 10, "max_tokens": 5})
    listed = [event["choices"][0]["logprobs"] for event in events]
    assert sum(len(found["tokens"]) for found in listed if found) == 5


def test_logit_bias(server: PeerServer) -> None:
    first = server.post(TEXT, {"prompt": MEANING, "max_tokens": 1, "logprobs": 1}).json()
    text = first["choices"][0]["text"]
    biased = {str(token): -100 for token in range(49152 // 2)}
    other = server.post(TEXT, {"prompt": MEANING, "max_tokens": 1, "logit_bias": biased}).json()
    assert other["choices"][0]["text"] != text


def test_cancel_request(server: PeerServer) -> None:
    with suppress(httpx.ReadTimeout):
        httpx.post(server.url + TEXT, json={"prompt": MEANING, "max_tokens": 400}, timeout=0.3)
    end = time.monotonic() + 60
    while server.get("/health").json()["running"]:
        assert time.monotonic() < end
        time.sleep(0.1)


# test_tool_call.py

TEST_TOOL = {
    "type": "function",
    "function": {
        "name": "test",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"success": {"type": "boolean", "const": True}},
            "required": ["success"],
        },
    },
}
ANY_CODE = {
    "type": "object",
    "properties": {"code": {"type": "string"}},
    "required": ["code"],
}
RUN_PYTHON: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Runs code in an ipython interpreter.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "maxLength": 20}},
            "required": ["code"],
        },
    },
}
EXAMPLE = [
    {"role": "system", "content": "You are a coding assistant."},
    {"role": "user", "content": "Write an example"},
]


def test_completion_with_required_tool_real_model(server: PeerServer) -> None:
    for tool, argument in ((TEST_TOOL, "success"), (RUN_PYTHON, "code")):
        asked: dict[str, Any] = {
            "messages": EXAMPLE,
            "max_tokens": 100,
            "tool_choice": "required",
            "tools": [tool],
            "parallel_tool_calls": False,
            "temperature": 0.0,
        }
        message = server.post(CHAT, asked).json()["choices"][0]["message"]
        assert not message["content"]
        [made] = message["tool_calls"]
        assert made["function"]["name"] == tool["function"]["name"]
        assert argument in made["function"]["arguments"]
        events = server.stream(CHAT, asked)
        deltas = [event["choices"][0]["delta"] for event in events]
        assert not any(delta.get("content") for delta in deltas)
        assert sum(bool(c.get("id")) for d in deltas for c in d.get("tool_calls") or []) == 1


def test_completion_without_tool_call_fast(server: PeerServer) -> None:
    hello = [EXAMPLE[0], {"role": "user", "content": "say hello world with python"}]
    for tools, choice in (([], None), ([TEST_TOOL], "none"), ([RUN_PYTHON], "none")):
        asked = {"messages": hello, "max_tokens": 20, "tools": tools, "tool_choice": choice}
        message = server.post(CHAT, asked).json()["choices"][0]["message"]
        assert message.get("tool_calls") is None


def test_calc_result(server: PeerServer) -> None:
    function = {"name": "calculate", "arguments": '{"expression":"sin(30 * pi / 180)"}'}
    messages = [
        *EXAMPLE,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_6789", "type": "function", "function": function}],
        },
        {"role": "tool", "name": "calculate", "content": "0.5564", "tool_call_id": "call_6789"},
    ]
    message = server.post(CHAT, {"messages": messages, "max_tokens": 20}).json()["choices"][0]
    assert message["message"]["content"]


GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {"location": {"type": "string", "description": "The city, as Paris"}},
            "required": ["location"],
        },
    },
}


@pytest.fixture(scope="module")
def coder(qwen_coder_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerServer]:
    """A model that was trained to call tools."""
    store = Store(tmp_path_factory.mktemp("store"))
    with served(StoreModels([str(qwen_coder_gguf)], store=store, context=1024)) as running:
        yield PeerServer(running.url)


def test_weather(coder: PeerServer) -> None:
    messages = [
        {"role": "system", "content": "You are a chatbot that uses tools/functions."},
        {"role": "user", "content": "What is the weather in Istanbul?"},
    ]
    asked = {"messages": messages, "tools": [GET_WEATHER], "max_tokens": 60}
    [made] = coder.post(CHAT, asked).json()["choices"][0]["message"]["tool_calls"]
    assert made["function"]["name"] == "get_current_weather"
    assert "Istanbul" in made["function"]["arguments"]


def test_hello_world(coder: PeerServer) -> None:
    messages = [
        {"role": "system", "content": "You are a coding assistant with tools."},
        {"role": "user", "content": "say hello world with python"},
    ]
    tool = {**RUN_PYTHON, "function": {**RUN_PYTHON["function"], "parameters": ANY_CODE}}
    asked = {"messages": messages, "tools": [tool], "tool_choice": "required", "max_tokens": 80}
    [made] = coder.post(CHAT, asked).json()["choices"][0]["message"]["tool_calls"]
    assert made["function"]["name"] == "python"
    assert "print" in made["function"]["arguments"]


# test_tokenize.py


def test_tokenize_detokenize(server: PeerServer) -> None:
    content = "What is the capital of France ?"
    tokens = server.post("/tokenize", {"content": content}).json()["tokens"]
    assert len(tokens) > 5
    text = server.post("/detokenize", {"tokens": tokens}).json()["content"]
    assert text.strip() == content


def test_tokenize_with_bos(server: PeerServer) -> None:
    content = "What is the capital of France ?"
    plain, begun = (
        server.post("/tokenize", {"content": content, "add_special": special}).json()["tokens"]
        for special in (False, True)
    )
    # This model has no token that begins a text.
    assert begun[-len(plain) :] == plain


def test_tokenize_with_pieces(server: PeerServer) -> None:
    content = "This is a test string with unicode 媽 and emoji 🤗"
    found = server.post("/tokenize", {"content": content, "with_pieces": True}).json()["tokens"]
    assert all(token["id"] >= 0 and token["piece"] for token in found)


# test_security.py


@pytest.fixture(scope="module")
def locked(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PeerServer]:
    store = Store(tmp_path_factory.mktemp("store"))
    models = StoreModels([str(smollm2_gguf)], store=store, context=512)
    with served(models, api_key=KEY, origins=("*",)) as running:
        yield PeerServer(running.url, KEY)


HELLO = {"prompt": MEANING, "max_tokens": 2}


def test_access_public_endpoint(locked: PeerServer) -> None:
    assert locked.get("/health").status_code == 200


def test_access_static_assets_without_api_key(locked: PeerServer) -> None:
    page = locked.get("/")
    assert page.status_code == 200
    assert "<!doctype html>" in page.text.lower()


def test_incorrect_api_key(locked: PeerServer) -> None:
    for headers in ({}, {"authorization": "Bearer invalid-key"}):
        refused = locked.post(TEXT, HELLO, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"


def test_correct_api_key(locked: PeerServer) -> None:
    reply = locked.post(TEXT, HELLO, headers={"authorization": f"Bearer {KEY}"})
    assert reply.status_code == 200
    assert reply.json()["choices"]


def test_correct_api_key_anthropic_header(locked: PeerServer) -> None:
    assert locked.post(TEXT, HELLO, headers={"x-api-key": KEY}).status_code == 200


def test_openai_library_correct_api_key(locked: PeerServer) -> None:
    reply = locked.client.chat.completions.create(model="", messages=BOOK, max_tokens=2)
    assert len(reply.choices) == 1


def test_cors_options(locked: PeerServer) -> None:
    for origin in ("http://localhost", "https://web.mydomain.fr"):
        asked = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        answer = httpx.options(locked.url + TEXT, headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in (origin, "*")
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()


# test_ctx_shift.py, test_ignore_eos.py


def test_ctx_shift_disabled_short_prompt(server: PeerServer) -> None:
    body = {"prompt": "Hi how are you", "ignore_eos": True}
    counts = [
        server.post(TEXT, {**body, "n_predict": n}).json()["timings"]["predicted_n"]
        for n in (16, -1)
    ]
    prompt = server.post(TEXT, {**body, "n_predict": 1}).json()["usage"]["prompt_tokens"]
    # Without a limit it goes on until the context is full.
    assert counts == [16, 512 - prompt]


def test_ctx_shift_disabled_long_prompt(server: PeerServer) -> None:
    refused = server.post(TEXT, {"prompt": "Lorem ipsum dolor sit amet. " * 100, "n_predict": 64})
    assert refused.status_code == 400
    assert "exceeds the available context size" in refused.json()["error"]["message"]


def test_ctx_shift_disabled_stream(server: PeerServer) -> None:
    *pieces, last = server.stream(TEXT, {"prompt": "Once", "n_predict": 24, "ignore_eos": True})
    assert "".join(piece["choices"][0]["text"] for piece in pieces)
    assert last["choices"][0]["finish_reason"] == "length"


def test_ignore_eos_populates_logit_bias(server: PeerServer) -> None:
    body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 60}
    reply = server.post(CHAT, {**body, "ignore_eos": True}).json()
    assert reply["usage"]["completion_tokens"] == 60


def test_ignore_eos_false_no_logit_bias(server: PeerServer) -> None:
    body = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 60}
    plain, false = server.post(CHAT, body).json(), server.post(CHAT, {**body, "ignore_eos": False})
    assert plain["choices"] == false.json()["choices"]


LEFT_OUT = {
    "it is about llama-server's slots, of which this server has none": (
        *("test_server_slots", "test_return_progress"),
    ),
    "it is about fields of llama-server's own /completion": (
        *("test_completion_response_fields", "test_n_probs_post_sampling"),
    ),
    "it needs other models than those at hand": (
        *("test_load_split_model", "test_completion_without_tool_call_slow", "test_thoughts"),
    ),
    "names and templates are the bundle's": (
        *("test_server_model_aliases_and_tags", "test_system_message_prefix"),
    ),
    "batches are not set from outside": ("test_consistent_result_different_batch_size",),
    "the page at / cannot be left out": ("test_no_webui",),
    "a prompt always ends where the answer begins": ("test_add_generation_prompt",),
    "a context that is full ends the answer": ("test_ctx_shift_enabled",),
    "no pictures": ("test_local_media_file",),
    "tests/unit/test_tool_format.py and others try such templates": (
        *("test_reasoning", "test_date_inside_prompt"),
    ),
}


@pytest.mark.parametrize(
    ("name", "reason"), [(name, reason) for reason, names in LEFT_OUT.items() for name in names]
)
def test_a_scenario_that_is_left_out(name: str, reason: str) -> None:
    assert name not in globals()
    pytest.skip(reason)
