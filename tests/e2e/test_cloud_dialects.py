"""Every dialect of an endpoint is read whole, in one request, over real sockets."""

from __future__ import annotations

import contextlib

import pytest
from support.dialects import DIALECTS, TEXT, TRUNCATED, Dialect
from support.scripted_server import HEAD, Script, ScriptedServer, answer, status
from support.talking_cloud import TalkingCloud, said

from edgesdk.errors import CloudBroken, CloudBusy, CloudError, CloudRefused, RequestError
from edgesdk.hybrid.cloud.client import CloudClient
from edgesdk.hybrid.cloud.cloud_reply import CloudReply, Restart, TextDelta
from edgesdk.hybrid.cloud.endpoint import Cloud, preset_names
from edgesdk.reply import ReasoningDelta

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("short_pauses")]

BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50, "temperature": 0.0}


def script_of(dialect: Dialect) -> Script:
    fields = [b"HTTP/1.1 200 OK", b"Connection: close"]
    if dialect.content_type:
        fields.append(b"Content-Type: " + dialect.content_type.encode())
    if dialect.encoding:
        fields.append(b"Content-Encoding: " + dialect.encoding.encode())
    return [b"\r\n".join(fields) + b"\r\n\r\n", dialect.body]


def ask(client: CloudClient, **body: object) -> tuple[str, CloudReply]:
    """Return what an app has on its screen at the end, and the reply."""
    shown, thought = "", ""
    stream = client.stream({**BODY, **body})
    for event in stream:
        if isinstance(event, Restart):
            shown = thought = ""
        elif isinstance(event, TextDelta):
            shown += event.text
        elif isinstance(event, ReasoningDelta):
            thought += event.text
    assert thought == stream.reply.reasoning
    return shown, stream.reply


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_is_read_in_one_request(name: str) -> None:
    dialect = DIALECTS[name]
    with ScriptedServer([script_of(dialect)]) as server:
        with CloudClient([Cloud(server.url, "m", "sk-key")]) as client:
            shown, found = ask(client)
        assert len(server.requests) == 1
    assert (shown, found.text, found.reasoning) == (dialect.text, dialect.text, dialect.reasoning)
    assert tuple(call.arguments for call in found.calls) == dialect.calls
    assert {call.name for call in found.calls} <= {"weather"}
    assert (found.finish_reason, found.failures) == (dialect.finish_reason, ())
    counted = found.usage and (found.usage.prompt_tokens, found.usage.completion_tokens)
    assert counted == dialect.usage
    ids = [call.id for call in found.calls if call.id]
    assert len(ids) == len(set(ids))
    # Whatever came can be sent again.
    found.text.encode()


@pytest.mark.parametrize("name", TRUNCATED)
def test_what_ends_too_soon_is_asked_again(name: str) -> None:
    with ScriptedServer([[HEAD, TRUNCATED[name]], answer(TEXT)]) as server:
        with CloudClient([Cloud(server.url, "m")]) as client:
            shown, found = ask(client)
        assert len(server.requests) == 2
    assert (shown, found.text, found.complete) == (TEXT, TEXT, True)
    assert [failure.endpoint for failure in found.failures] == [found.endpoint]


@pytest.mark.parametrize("name", TRUNCATED)
def test_what_ends_too_soon_is_never_an_answer(name: str) -> None:
    replies = []
    with (
        ScriptedServer([[HEAD, TRUNCATED[name]]]) as server,
        CloudClient([Cloud(server.url, "m")]) as client,
        contextlib.suppress(CloudError),
    ):
        replies.append(ask(client)[1])
    assert not any(reply.complete for reply in replies)


def test_a_call_that_its_limit_cut_is_not_paid_for_again() -> None:
    body = (
        DIALECTS["call"]
        .body.replace(b'\\": \\"Oslo\\"}', b"")
        .replace(b'"tool_calls"}', b'"length"}')
    )
    with ScriptedServer([[HEAD, body]]) as server:
        with CloudClient([Cloud(server.url, "m")]) as client:
            _, found = ask(client)
        assert len(server.requests) == 1
    assert (found.finish_reason, found.calls) == ("length", ())


# What each speaks, by its documentation and by complaints.
PRESETS: dict[str, list[str]] = {
    "openai": ["as OpenAI", "two calls", "refusal"],
    "anthropic": ["as OpenAI", "all of index 0", "an empty object first"],
    "gemini": ["all of index 0", "no index, no id", "all of index 0, the same id", "finish null"],
    "azure": ["choices empty", "filtered", "as OpenAI"],
    "groq": ["usage as Groq", "two calls in a chunk"],
    "cerebras": ["finish in the last text", "reasoning"],
    "sambanova": ["no done", "usage as floats"],
    "together": ["finish eos", "role null"],
    "fireworks": ["usage in every chunk", "name in every part"],
    "deepinfra": ["role null", "usage null"],
    "openrouter": ["comments", "reasoning under both names", "empty finish reasons"],
    "deepseek": ["reasoning_content", "one letter each"],
    "qwen": ["another id in every part", "id later than the name", "surrogates apart"],
    "siliconflow": ["usage in every chunk", "empty finish reasons"],
    "ppio": ["reasoning in the text", "no done, no usage"],
    "novita": ["reasoning in the text", "choices null"],
    "vllm": ["another id in every part", "finish in the last text"],
    "llama-server": ["one letter each", "call that stops"],
    "lmstudio": ["no usage", "call that stops"],
    "ollama": ["reasoning", "all of index 0", "whole"],
}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_reads_its_dialects(name: str) -> None:
    dialects = [DIALECTS[each] for each in PRESETS[name]]
    with ScriptedServer([script_of(dialect) for dialect in dialects]) as server:
        cloud = Cloud.preset(name, "m", "sk-key", base_url=server.url)
        with CloudClient([cloud]) as client:
            for dialect in dialects:
                shown, found = ask(client)
                assert (shown, found.reasoning) == (dialect.text, dialect.reasoning)
                assert tuple(call.arguments for call in found.calls) == dialect.calls
        assert len(server.requests) == len(dialects)
        for body in server.bodies():
            assert body[cloud.max_tokens_field or "max_tokens"] == 50


class Particular(TalkingCloud):
    """Refuses parameters, each with the words of an endpoint."""

    def __init__(self, **refusals: tuple[str, object]) -> None:
        super().__init__(self._respond)
        self._refusals = refusals

    def _respond(self, body: dict[str, object]) -> Script:
        for name, (line, words) in self._refusals.items():
            if name in body:
                return status(line, words)
        return said("Hello")


def openai_error(message: str, **fields: str) -> tuple[str, object]:
    return "400 Bad Request", {"error": {"message": message, **fields}}


WANTS_ANOTHER = openai_error(
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
    " 'max_completion_tokens' instead.",
    param="max_tokens",
    code="unsupported_parameter",
)
PARTICULAR: dict[str, dict[str, tuple[str, object]]] = {
    "OpenAI": {
        "max_tokens": WANTS_ANOTHER,
        "temperature": openai_error(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default"
            " (1) value is supported."
        ),
    },
    "Moonshot": {
        "temperature": openai_error("invalid temperature: only 1 is allowed for this model")
    },
    "Mistral": {
        "stream_options": (
            "422 Unprocessable",
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "stream_options"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            },
        )
    },
    "Gemini": {
        "seed": (
            "400 Bad Request",
            [
                {
                    "error": {
                        "code": 400,
                        "message": 'Invalid JSON payload received. Unknown name "seed": Cannot find'
                        " field.",
                        "status": "INVALID_ARGUMENT",
                    }
                }
            ],
        )
    },
    "Anthropic": {
        "top_p": openai_error(
            "`temperature` and `top_p` cannot both be specified for this model. Please use only"
            " one."
        )
    },
    "Cerebras": {
        "parallel_tool_calls": openai_error("property 'body.parallel_tool_calls' is unsupported")
    },
    "older ones": {
        "stream_options": openai_error("Unrecognized request argument supplied: stream_options")
    },
    "a plain text": {"seed": ("400 Bad Request", b"unknown field `seed`")},
}
EXTRAS = {"seed": 3, "top_p": 0.9, "parallel_tool_calls": False}


@pytest.mark.parametrize("name", PARTICULAR)
def test_what_an_endpoint_refuses_is_learned_once(name: str) -> None:
    with Particular(**PARTICULAR[name]) as server, CloudClient([server.cloud()]) as client:
        assert ask(client, **EXTRAS)[0] == "Hello"
        first = len(server.requests)
        assert first == 1 + len(PARTICULAR[name])
        for _ in range(2):
            assert ask(client, **EXTRAS)[0] == "Hello"
        assert len(server.requests) == first + 2
        sent = server.bodies()[-1]
    assert not set(PARTICULAR[name]) & set(sent)
    kept = {*BODY, *EXTRAS} - set(PARTICULAR[name])
    assert kept <= set(sent)
    if "max_tokens" in PARTICULAR[name]:
        assert sent["max_completion_tokens"] == 50


def test_what_is_set_needs_not_be_learned() -> None:
    with Particular(**PARTICULAR["OpenAI"]) as server:
        cloud = server.cloud(max_tokens_field="max_completion_tokens", omit=["temperature"])
        with CloudClient([cloud]) as client:
            assert ask(client)[0] == "Hello"
        assert len(server.requests) == 1


def test_what_was_set_wrongly_is_learned_too() -> None:
    refusal = openai_error("Unrecognized request argument supplied: max_completion_tokens")
    with Particular(max_completion_tokens=refusal) as server:
        cloud = server.cloud(max_tokens_field="max_completion_tokens")
        with CloudClient([cloud]) as client:
            assert ask(client)[0] == "Hello"
        assert server.bodies()[-1]["max_tokens"] == 50


def test_one_that_likes_neither_name_is_not_asked_for_ever() -> None:
    refusal = openai_error("max_tokens and max_completion_tokens are not supported")
    with Particular(max_completion_tokens=refusal, max_tokens=refusal) as server:
        with CloudClient([server.cloud()]) as client, pytest.raises(CloudRefused):
            ask(client)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 50. This model's maximum context"
        " length is 40 tokens.",
        "Invalid schema for response_format: 'seed' is required",
        "The model `m` does not exist",
    ],
)
def test_other_refusals_teach_nothing(message: str) -> None:
    with Particular(messages=openai_error(message)) as server:
        with CloudClient([server.cloud()]) as client, pytest.raises(CloudRefused):
            ask(client, seed=3)
        assert len(server.requests) == 1


def test_a_request_that_was_changed_has_another_idempotency_key() -> None:
    with Particular(max_tokens=WANTS_ANOTHER) as server, CloudClient([server.cloud()]) as client:
        ask(client)
        keys = [
            line
            for request in server.requests
            for line in request.lower().split(b"\r\n")
            if line.startswith(b"idempotency-key")
        ]
    assert len(set(keys)) == 2


@pytest.mark.parametrize(
    ("script", "kind", "requests"),
    [
        (status("500 Oops", b"[" * 60_000), CloudBusy, 3),
        (status("502 Bad", b"<html>bad gateway</html>", Content_Type="text/html"), CloudBusy, 3),
        ([HEAD, b"data: " + b"[" * 200_000 + b"\n\ndata: [DONE]\n\n"], CloudBroken, 3),
        (status("200 OK", b"[" * 200_000), CloudBroken, 3),
        (
            status(
                "429 Too Many",
                {
                    "error": {
                        "message": "You exceeded your current quota",
                        "code": "insufficient_quota",
                    }
                },
            ),
            CloudRefused,
            1,
        ),
        (status("402 Payment", {"error": {"message": "Insufficient Balance"}}), CloudRefused, 1),
        (status("429 Too Many", {"error": {"message": "Rate limit reached"}}), CloudBusy, 3),
    ],
    ids=["deep error", "html", "deep", "deep and whole", "quota", "balance", "rate"],
)
def test_faults_stay_in_the_tree_of_errors(
    script: Script, kind: type[CloudError], requests: int
) -> None:
    with ScriptedServer([script]) as server:
        with CloudClient([Cloud(server.url, "m")]) as client, pytest.raises(kind) as raised:
            ask(client)
        assert len(server.requests) == requests
    assert len(raised.value.attempts) == requests
    assert {attempt.status for attempt in raised.value.attempts} == {raised.value.status}


@pytest.mark.parametrize(
    "content", ["lone \ud83d surrogate", float("nan"), float("inf"), {1, 2}, object()]
)
def test_what_cannot_be_written_is_not_sent(content: object) -> None:
    with ScriptedServer([answer("Hello")]) as server:
        with CloudClient([Cloud(server.url, "m")]) as client, pytest.raises(RequestError):
            ask(client, messages=[{"role": "user", "content": content}])
        assert server.requests == []


def test_nor_what_is_nested_too_deeply() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with ScriptedServer([answer("Hello")]) as server:
        with CloudClient([Cloud(server.url, "m")]) as client, pytest.raises(RequestError):
            ask(client, messages=deep)
        assert server.requests == []


def test_the_reason_of_a_refusal_has_neither_key_nor_prompt() -> None:
    secret = "sk-live-0123456789abcdef"
    prompt = "My patient Alice Johnson, born 1987-03-02, has a rash on her left arm"
    refusal = {
        "error": {
            "message": f"Key {secret} may not ask '{prompt}', nor sk-abc12345****wxyz about alice"
            " Johnson of 1987-03-02: model m is for adults",
            "type": "invalid_request_error",
            "code": "policy_violation",
        }
    }
    with ScriptedServer([status("403 No", refusal)]) as server:
        cloud = Cloud(server.url, "m", secret, headers={"X-Own": "own-secret"})
        with CloudClient([cloud]) as client, pytest.raises(CloudRefused) as raised:
            ask(client, messages=[{"role": "user", "content": prompt}])
    error = raised.value
    assert (error.status, error.code) == (403, "policy_violation")
    assert error.reason is not None
    assert "model m is for adults" in error.reason
    (attempt,) = error.attempts
    for text in (str(error), error.reason, attempt.message):
        for private in (secret, "abc12345", "Alice", "alice", "Johnson", "1987", "left arm"):
            assert private not in text
