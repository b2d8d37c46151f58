"""`response_format` as OpenAI's own client asks for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.lib._parsing._completions import type_to_response_format_param
from pydantic import BaseModel
from support.fake_engine import FakeEngine
from support.served import EchoEngine, FakeModels, Served, client_of, served, user

pytestmark = pytest.mark.e2e


class Weather(BaseModel):
    city: Literal["Lima", "Oslo"]
    degrees: int
    windy: bool


LIMA = '{"city":"Lima","degrees":21,"windy":false}'


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(FakeModels(echo=EchoEngine, hello=FakeEngine)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def schema(form: Any, **more: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": form, **more}}


def answers(server: Served) -> list[str]:
    """What the metrics say of answers."""
    lines = server.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith("edgesdk_answers_total")]


def test_the_clients_parse_gives_an_instance(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="echo", messages=user(LIMA), response_format=Weather, temperature=0
    )
    assert reply.choices[0].message.parsed == Weather(city="Lima", degrees=21, windy=False)
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_model_that_says_something_else_is_held_to_the_form(
    client: openai.OpenAI, strict: bool | None
) -> None:
    form = Weather.model_json_schema()
    form["properties"]["degrees"] |= {"minimum": 0, "maximum": 9}
    more = {} if strict is None else {"strict": strict}
    for text in ("No JSON at all.", '{"city":"Paris"}', '["a list"]', ""):
        for temperature in (0, 1.5):
            reply = client.chat.completions.create(
                model="echo",
                messages=[{"role": "system", "content": "x"}, *user(f"~{text}")],
                response_format=schema({**form, "additionalProperties": False}, **more),
                temperature=temperature,
                seed=3,
            )
            assert Weather.model_validate_json(str(reply.choices[0].message.content))


def test_a_stream_has_the_same_form(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="echo", messages=user(LIMA), response_format=Weather, temperature=0
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == LIMA
    assert len(deltas) > 1
    assert final.choices[0].message.parsed == Weather.model_validate_json(LIMA)


def test_any_object(client: openai.OpenAI) -> None:
    def ask(text: str, **more: Any) -> Any:
        return client.chat.completions.create(
            model="echo",
            messages=user(text),
            temperature=0,
            response_format={"type": "json_object"},
            **more,
        ).choices[0]

    whole = '{"a":[1,{"b":null}],"c":"d"}'
    assert ask(whole).message.content == whole
    # A list is no object, so its first letter cannot come.
    assert ask("[1, 2]", max_tokens=5).message.content.startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_an_object_that_max_tokens_cuts(client: openai.OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "echo",
        "messages": user(LIMA),
        "temperature": 0,
        "max_tokens": 9,
        "response_format": type_to_response_format_param(Weather),
    }
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        assert chunks[-1].choices[0].finish_reason == "length"
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == LIMA[:9]
        return
    [choice] = client.chat.completions.create(**asked).choices
    assert (choice.finish_reason, choice.message.content) == ("length", LIMA[:9])
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**asked, "response_format": Weather})


@pytest.mark.parametrize(
    ("form", "param", "said"),
    [
        (schema({"type": "strnig"}), "response_format.json_schema.schema", "type"),
        (schema({"not": {}}), "response_format.json_schema.schema", "'not'"),
        (schema({"type": "integer", "minimum": 2, "maximum": 1}), None, ""),
        (schema({"$ref": "#"}), "response_format.json_schema.schema", "$ref"),
        (schema({"$ref": "http://a/b"}), "response_format.json_schema.schema", ""),
        (schema({"pattern": "(?=x)", "type": "string"}), None, "pattern"),
        (schema({"enum": ["x" * 100_000]}), "response_format.json_schema.schema", "100,000"),
        (schema(None), "response_format.json_schema.schema", "missing"),
        ({"type": "json_schema"}, "response_format.json_schema", "missing"),
        ({"type": "yaml"}, "response_format.type", ""),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_anything_is_decoded(
    client: openai.OpenAI, server: Served, form: Any, param: str | None, said: str
) -> None:
    before = answers(server)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="hello", messages=user("Hi"), response_format=form, stream=stream
            )
        assert str(caught.value.param).startswith("response_format")
        assert param in (None, caught.value.param)
        assert said in str(caught.value)
        assert caught.value.type == "invalid_request_error"
    assert answers(server) == before


def test_a_stop_text_does_not_cut_the_form(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="echo",
        messages=user(LIMA),
        stop=["Lima", "}"],
        temperature=0,
        response_format=type_to_response_format_param(Weather),  # type: ignore[arg-type]
    )
    assert reply.choices[0].message.content == LIMA


def test_without_llguidance_the_error_is_the_pip_line(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server is a thread of this process.
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        openai.InternalServerError, match=r"pip install 'edgesdk\[structure\]'"
    ) as e:
        client.chat.completions.create(
            model="echo", messages=user("Hi"), response_format={"type": "json_object"}
        )
    assert e.value.status_code == 501
    assert e.value.code == "missing_extra"
    assert e.value.param == "response_format"


def test_answers_of_different_forms_at_the_same_time(client: openai.OpenAI) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> Any:
        form = {"type": "object", "properties": {f"n{number}": {"const": number}}}
        form |= {"required": [f"n{number}"], "additionalProperties": False}
        reply = client.chat.completions.create(
            model="echo", messages=user(f"question {number}"), response_format=schema(form)
        )
        return json.loads(str(reply.choices[0].message.content))

    with ThreadPoolExecutor(6) as many:
        assert list(many.map(ask, range(12))) == [{f"n{n}": n} for n in range(12)]
