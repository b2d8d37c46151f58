"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from support.fake_engine import END, FakeEngine
from support.served import EchoEngine, FakeModels, Gate, Served, client_of, served, user

from edgesdk.errors import EngineError
from edgesdk.options import Options
from edgesdk.server.api_requests import ChatRequest, parse

pytestmark = pytest.mark.e2e


def _failing(sequence: object) -> None:
    raise EngineError("The device is gone.")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    models = FakeModels(
        hello=FakeEngine,
        echo=EchoEngine,
        small=lambda: FakeEngine(context_length=64),
        broken=lambda: FakeEngine(before_extend=_failing),
    )
    with served(models, max_models=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def test_a_chat_completion(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="hello", messages=user("Hi"), temperature=0)
    [choice] = reply.choices
    assert reply.object == "chat.completion"
    assert reply.model == "hello"
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello there."
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert reply.usage is not None
    # The fake's tokens are bytes; its template writes "user: Hi\n" and one byte that opens.
    assert reply.usage.prompt_tokens == len("user: Hi\n") + 1
    assert reply.usage.completion_tokens == len("Hello there.")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_has_the_same_text_and_then_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="echo",
            messages=user("Grüße 🌍"),
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *pieces, last, usage = chunks
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == "Grüße 🌍"
    assert {c.choices[0].finish_reason for c in pieces} == {None}
    assert {c.usage for c in [*pieces, last]} == {None}
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len("Grüße 🌍".encode())
    assert len({c.id for c in chunks}) == 1


def test_a_stream_without_usage_ends_with_its_reason(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="hello", messages=user("Hi"), max_tokens=5, stream=True, temperature=0
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(c.usage is None for c in chunks)


def test_messages_in_parts_and_of_developers(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="echo",
        messages=[
            {"role": "developer", "content": "Echo."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
            },
        ],
        temperature=0,
    )
    assert reply.choices[0].message.content == "one two"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len("system: Echo.\nuser: one two\n") + 1


def test_stop_texts_and_limits(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(
            model="hello", messages=user("Hi"), temperature=0, **options
        ).choices[0]

    assert ask(stop=" there").message.content == "Hello"
    assert ask(stop=["zzz", "lo t"]).message.content == "Hel"
    assert ask(stop=" there").finish_reason == "stop"
    assert ask(max_completion_tokens=3).message.content == "Hel"
    assert ask(max_tokens=3).finish_reason == "length"
    # -100 takes the first letter far below all others.
    assert ask(logit_bias={str(ord("H")): -100}, max_tokens=1).message.content != "H"


def test_a_seed_makes_sampling_repeatable(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        reply = client.chat.completions.create(
            model="hello", messages=user("Hi"), seed=seed, temperature=2, max_tokens=40
        )
        return reply.choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(-7) == ask(-7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_the_likeliest_token_is_the_default_as_in_the_library(client: openai.OpenAI) -> None:
    texts = {
        client.chat.completions.create(model="hello", messages=user("Hi"), seed=seed, max_tokens=30)
        .choices[0]
        .message.content
        for seed in range(4)
    }
    assert texts == {"Hello there."}


def test_logprobs(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="hello", messages=user("Hi"), temperature=0, logprobs=True, top_logprobs=3
    )
    assert reply.choices[0].logprobs is not None
    entries = reply.choices[0].logprobs.content or []
    assert "".join(e.token for e in entries) == "Hello there."
    # The fake's logits fall by 0.5 from id to id, over all 256.
    norm = math.log(sum(math.exp(-0.5 * distance) for distance in range(256)))
    for entry in entries:
        assert entry.logprob == pytest.approx(-norm, abs=1e-5)
        assert entry.bytes == [ord(entry.token)]
        tops = [(top.bytes, top.logprob) for top in entry.top_logprobs]
        assert [ids for ids, _ in tops] == [[ord(entry.token) + i] for i in range(3)]
        assert [p for _, p in tops] == pytest.approx([-norm - 0.5 * i for i in range(3)], abs=1e-5)


def test_logprobs_in_a_stream_cover_every_token(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="hello", messages=user("Hi"), temperature=0, logprobs=True, stop="ere.", stream=True
    )
    logprobs = [c.choices[0].logprobs for c in stream if c.choices]
    tokens = [e.token for found in logprobs if found for e in found.content or []]
    assert "".join(tokens) == "Hello there."


def test_text_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="hello", prompt="Say \x02", temperature=0, max_tokens=50, logprobs=2
    )
    [choice] = reply.choices
    assert (choice.text, choice.finish_reason) == ("Hello there.", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list("Hello there.")
    assert choice.logprobs.text_offset == list(range(12))
    assert [len(top) for top in choice.logprobs.top_logprobs or []] == [2] * 12

    ids = client.completions.create(model="hello", prompt=[2], temperature=0, max_tokens=50)
    assert ids.choices[0].text == "Hello there."
    stream = client.completions.create(
        model="hello", prompt=["\x02"], temperature=0, max_tokens=7, stream=True
    )
    assert "".join(c.choices[0].text for c in stream) == "Hello t"
    short = client.completions.create(model="hello", prompt="endless", temperature=0)
    assert short.usage is not None
    assert short.usage.completion_tokens == 16


@pytest.mark.parametrize("token", [-1, 256, 10**30])
def test_ids_that_are_no_tokens(client: openai.OpenAI, token: int) -> None:
    with pytest.raises(openai.BadRequestError, match="from 0 to 255") as caught:
        client.completions.create(model="hello", prompt=[2, token])
    assert caught.value.param == "prompt.1"


def test_a_conversation_reuses_its_cache(client: openai.OpenAI) -> None:
    first = user("What is a rather long question that only this test asks?")
    reply = client.chat.completions.create(model="hello", messages=first, temperature=0)
    answer = reply.choices[0].message.content
    second = [*first, {"role": "assistant", "content": answer}, *user("And another?")]
    again = client.chat.completions.create(model="hello", messages=second, temperature=0)
    assert reply.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    held = reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert held - 1 <= (again.usage.prompt_tokens_details.cached_tokens or 0) <= held


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["broken", "echo", "hello", "small"]
    assert client.models.retrieve("echo").owned_by == "edgesdk"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("absent")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"n": 0}, "n", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"extra_body": {"beam_width": 4}}, "beam_width", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": " "}]}, None, None),
        ({"messages": [{"role": "user"}]}, None, None),
        ({"logit_bias": {"999999": 1}}, None, None),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"stop": [""]}, None, None),
        (
            {"extra_body": {"repetition_penalty": 1.1, "repeat_penalty": 1.2}},
            "repetition_penalty",
            "invalid_value",
        ),
        ({"extra_body": {"dry_base": 0.5}}, "dry_base", "invalid_value"),
        ({"extra_body": {"stop_on_repetition": "no way"}}, "stop_on_repetition", "invalid_value"),
    ],
)
def test_what_cannot_be_done_is_a_bad_request(
    client: openai.OpenAI, change: dict[str, Any], param: str | None, code: str | None
) -> None:
    request: dict[str, Any] = {"model": "hello", "messages": user("Hi"), **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**request)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


def test_harmless_parameters_are_taken(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="hello",
        messages=user("Hi"),
        temperature=0,
        n=1,
        user="me",
        store=False,
        metadata={"a": "b"},
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        extra_body={"top_k": 1, "min_p": 0.0, "repetition_penalty": 1.0},
    )
    assert reply.choices[0].message.content == "Hello there."


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_goes_in_a_cycle_has_a_word_that_clients_know(stream: bool) -> None:
    models = FakeModels(endless=lambda: FakeEngine(b"It is a city. " * 200))
    with served(models) as server, client_of(server) as client:
        ask = functools.partial(
            client.chat.completions.create,
            model="endless",
            messages=user("What is Paris?"),
            temperature=0,
            logprobs=True,
        )
        if stream:
            chunks = list(ask(stream=True, stream_options={"include_usage": True}))
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            tokens = [t for c in chunks if c.choices and c.choices[0].logprobs
                      for t in c.choices[0].logprobs.content]  # fmt: skip
            last = next(c for c in chunks if c.choices and c.choices[0].finish_reason)
            usage = chunks[-1].usage
        else:
            last = ask()
            text, usage = last.choices[0].message.content, last.usage
            tokens = last.choices[0].logprobs.content
        assert text.rstrip() == "It is a city."
        assert "".join(token.token for token in tokens) == text
        assert usage.completion_tokens == len(text)
        assert last.choices[0].finish_reason == "length"
        assert last.edgesdk == {"finish_reason": "repetition"}

        whole = ask(max_tokens=500, extra_body={"stop_on_repetition": False})
        assert whole.usage.completion_tokens == 500
        assert (whole.choices[0].finish_reason, whole.model_extra.get("edgesdk")) == (
            "length",
            None,
        )


def test_penalties_by_the_names_that_other_servers_have(client: openai.OpenAI) -> None:
    def options(**fields: Any) -> Options:
        body = json.dumps({"model": "m", "messages": user("Hi"), **fields})
        return parse(ChatRequest, body.encode()).options(deadline=1.0)

    assert options(repeat_penalty=1.2).repetition_penalty == 1.2
    assert options(repetition_penalty=1.3, repeat_last_n=64).penalty_window == 64
    assert options(repeat_penalty=1.2, repeat_last_n=-1).penalty_window is None
    assert not options(repeat_penalty=1.2, presence_penalty=1, repeat_last_n=0).penalizes
    dry = options(
        dry_multiplier=0.8,
        dry_base=2,
        dry_allowed_length=3,
        dry_penalty_last_n=512,
        dry_sequence_breakers=["\n"],
    )
    assert (dry.dry_multiplier, dry.dry_base, dry.dry_allowed_length) == (0.8, 2, 3)
    assert (dry.dry_window, dry.dry_sequence_breakers) == (512, ("\n",))
    assert not options(dry_multiplier=0.8, dry_penalty_last_n=0).penalizes
    assert options().stop_on_repetition
    assert not options(stop_on_repetition=False).stop_on_repetition
    reply = client.chat.completions.create(
        model="hello",
        messages=user("Hi"),
        temperature=0,
        extra_body={"repeat_penalty": 1.0, "dry_multiplier": 0.5},
    )
    assert reply.choices[0].message.content == "Hello there."


def test_an_unknown_model(client: openai.OpenAI) -> None:
    for name in ("absent", "../../etc/passwd", "A B"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=name, messages=user("Hi"))
        assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_does_not_fit(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="small", messages=user("x" * 64), stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails(client: openai.OpenAI, server: Served, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError, match="The device is gone"):
        client.chat.completions.create(model="broken", messages=user("Hi"), stream=stream)
    server.until(running=0, waiting=0)


def test_a_panic_ends_one_answer_and_not_the_server() -> None:
    class Panic(BaseException):
        """As PyO3 raises it for a panic of Rust."""

    def panic(sequence: object) -> None:
        raise Panic("index out of bounds")

    models = FakeModels(hello=FakeEngine, rusty=lambda: FakeEngine(before_extend=panic))
    with served(models) as server, client_of(server) as client:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="its log says more"):
                client.chat.completions.create(model="rusty", messages=user("Hi"))
        server.until(running=0, waiting=0)
        reply = client.chat.completions.create(model="hello", messages=user("Hi"), temperature=0)
        assert reply.choices[0].message.content == "Hello there."


def test_an_engine_that_fails_in_the_middle_of_a_stream() -> None:
    def fail_late(sequence: Any) -> None:
        if len(sequence.extended) > 3:
            raise EngineError("The device is gone.")

    models = FakeModels(late=lambda: FakeEngine(before_extend=fail_late))
    with served(models) as server, client_of(server) as client:
        stream = client.chat.completions.create(
            model="late", messages=user("Hi"), temperature=0, stream=True
        )
        assert "".join(next(stream).choices[0].delta.content or "" for _ in range(5)) == "Hell"
        with pytest.raises(openai.APIError, match="The device is gone"):
            next(stream)


def test_keys() -> None:
    with served(FakeModels(hello=FakeEngine), api_key="sesame") as server:
        with client_of(server, "wrong") as client, pytest.raises(openai.AuthenticationError) as no:
            client.models.list()
        assert no.value.code == "invalid_api_key"
        with client_of(server, "sesame") as client:
            assert [m.id for m in client.models.list()] == ["hello"]
        assert server.get("/metrics").status_code == 401
        assert server.get("/health").status_code == 200


def test_a_full_queue_is_a_rate_limit() -> None:
    gate = Gate(shut=True)
    models = FakeModels(slow=lambda: EchoEngine(before_extend=gate))

    async def run(server: Served) -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=20
        ) as client:

            async def ask(text: str) -> str | None:
                reply = await client.chat.completions.create(
                    model="slow", messages=user(text), temperature=0
                )
                return reply.choices[0].message.content

            asked = []
            for index, state in enumerate([(1, 0), (1, 1), (1, 2)]):
                asked.append(asyncio.create_task(ask(f"question {index}")))
                running, waiting = state
                await asyncio.to_thread(server.until, running=running, waiting=waiting)
            with pytest.raises(openai.RateLimitError) as caught:
                await ask("one too many")
            assert int(caught.value.response.headers["retry-after"]) >= 1
            gate.open()
            assert await asyncio.gather(*asked) == [f"question {i}" for i in range(3)]

    with served(models, parallel=1, queue=2) as server:
        asyncio.run(run(server))


def test_what_cannot_be_answered_does_not_wait_for_its_turn() -> None:
    gate = Gate(shut=True)
    models = FakeModels(slow=lambda: FakeEngine(before_extend=gate, context_length=64))
    with served(models, parallel=1) as server, client_of(server) as client:
        other = threading.Thread(
            target=client.chat.completions.create, kwargs={"model": "slow", "messages": user("Hi")}
        )
        other.start()
        try:
            server.until(running=1)
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(model="slow", messages=user("x" * 64))
        finally:
            gate.open()
            other.join()


def test_the_deadline_counts_the_wait() -> None:
    gate = Gate(shut=True)
    models = FakeModels(slow=lambda: FakeEngine(before_extend=gate))
    with served(models, parallel=1, deadline=0.3) as server, client_of(server) as client:
        try:
            with (
                client_of(server) as other,
                pytest.raises(openai.APITimeoutError),
            ):
                other.with_options(timeout=0.1).chat.completions.create(
                    model="slow", messages=user("Hi")
                )
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(model="slow", messages=user("Hi"))
            assert caught.value.code == "deadline_exceeded"
            assert caught.value.status_code == 503
        finally:
            gate.open()


def test_many_clients_get_their_own_answers(server: Served) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="x", max_retries=0, timeout=20
        ) as client:

            async def talk(who: int) -> None:
                messages: list[Any] = [{"role": "system", "content": "The same for all. " * 8}]
                for turn in range(3):
                    text = f"client {who}, turn {turn}, " + "x" * (who % 7)
                    messages += user(text)
                    reply = await client.chat.completions.create(
                        model="echo", messages=messages, temperature=0
                    )
                    assert reply.choices[0].message.content == text
                    messages.append({"role": "assistant", "content": text})

            await asyncio.gather(*(talk(who) for who in range(12)))

    asyncio.run(run())


def test_end_tokens_never_show(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="hello", messages=user("Hi"), temperature=0, logprobs=True
    )
    assert reply.choices[0].logprobs is not None
    shown = [e.bytes for e in reply.choices[0].logprobs.content or []]
    assert [END] not in shown
