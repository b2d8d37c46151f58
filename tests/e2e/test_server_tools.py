"""Tools as OpenAI's own client offers them, and answers their calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from support.served import TOOL_TEMPLATE, EchoEngine, FakeModels, Served, client_of, served, user

pytestmark = pytest.mark.e2e


class Weather(BaseModel):
    """Tell the weather."""

    city: Literal["Lima", "Oslo"]
    days: int = Field(ge=1, le=7)


def tool(model: type[BaseModel] = Weather, **more: Any) -> Any:
    function: dict[str, Any] = {"name": model.__name__.lower(), "description": model.__doc__ or ""}
    function |= {"parameters": model.model_json_schema(), **more}
    return {"type": "function", "function": function}


NOW: Any = {"type": "function", "function": {"name": "now"}}


def call(name: str = "weather", arguments: Any = None) -> str:
    arguments = {"city": "Lima", "days": 3} if arguments is None else arguments
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    models = FakeModels(template=TOOL_TEMPLATE, echo=EchoEngine)
    with served(models) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def ask(client: openai.OpenAI, text: str, **more: Any) -> Any:
    asked = {"model": "echo", "messages": user(text), "temperature": 0, "tools": [tool(), NOW]}
    return client.chat.completions.create(**{**asked, **more}).choices[0]


def said(choice: Any) -> list[tuple[str, Any]]:
    """Names and arguments of the calls."""
    calls = choice.message.tool_calls or []
    return [(c.function.name, json.loads(c.function.arguments)) for c in calls]


def test_a_call(client: openai.OpenAI) -> None:
    choice = ask(client, call())
    assert said(choice) == [("weather", {"city": "Lima", "days": 3})]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [made] = choice.message.tool_calls
    assert made.type == "function"
    assert made.id.startswith("call_")


def test_several_calls_with_words_before_them(client: openai.OpenAI) -> None:
    text = f"I look.\n{call()}\n{call('now', {})}\n"
    choice = ask(client, text)
    assert said(choice) == [("weather", {"city": "Lima", "days": 3}), ("now", {})]
    assert choice.message.content == "I look."
    assert len({made.id for made in choice.message.tool_calls}) == 2
    alone = ask(client, text, parallel_tool_calls=False)
    assert said(alone) == said(choice)[:1]


@pytest.mark.parametrize(
    "text",
    [
        "It is warm.",
        "2 < 3 and <tool",
        call("weather", {"city": "Paris", "days": 3}),
        call("weather", {"city": "Lima"}),
        call("weather", {"city": "Lima", "days": "3"}),
        call("absent", {}),
        call("now", {"x": 1}),
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Lima", "da',
        '<tool_call>{"name": "now", "arguments": {"x": NaN}}</tool_call>',
        '{"name": "Bob", "age": 3}',
        "```json\n[1, 2]\n```",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_whole_call_that_fits_is_text(
    client: openai.OpenAI, text: str, stream: bool
) -> None:
    asked: Any = {"tools": [tool(), NOW]}
    if stream:
        chunks = list(
            client.chat.completions.create(
                model="echo", messages=user(text), temperature=0, stream=True, **asked
            )
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == text
        assert all(c.choices[0].delta.tool_calls is None for c in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
        return
    choice = ask(client, text, **asked)
    assert choice.message.content == text
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


def test_a_call_as_the_whole_answer_without_tags(client: openai.OpenAI) -> None:
    text = '{"name": "weather", "parameters": {"city": "Oslo", "days": 1}}'
    assert said(ask(client, text)) == [("weather", {"city": "Oslo", "days": 1})]


def test_streamed_calls_come_as_openai_streams_them(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo",
        messages=user(f"Well.\n{call()}\n{call('now', {})}"),
        temperature=0,
        tools=[tool(), NOW],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, usage = stream
    first, *deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (first.role, first.content) == ("assistant", None)
    assert "".join(d.content or "" for d in deltas) == "Well."
    pieces = [piece for d in deltas for piece in d.tool_calls or []]
    assert [piece.index for piece in pieces] == [0, 0, 1, 1]
    heads = [piece for piece in pieces if piece.id]
    assert [(h.function.name, h.type) for h in heads if h.function] == [
        ("weather", "function"),
        ("now", "function"),
    ]
    arguments = ["", ""]
    for piece in pieces:
        assert piece.function is not None
        arguments[piece.index] += piece.function.arguments or ""
    assert [json.loads(text) for text in arguments] == [{"city": "Lima", "days": 3}, {}]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert usage.usage is not None
    assert usage.usage.completion_tokens > 0


def test_the_client_accumulates_a_streamed_call(client: openai.OpenAI) -> None:
    definition = openai.pydantic_function_tool(Weather, name="weather")
    with client.chat.completions.stream(
        model="echo", messages=user(call()), temperature=0, tools=[definition]
    ) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [event.name for event in done] == ["weather"]
    [choice] = final.choices
    assert choice.finish_reason == "tool_calls"
    [made] = choice.message.tool_calls or []
    assert made.function.parsed_arguments == Weather(city="Lima", days=3)


@pytest.mark.parametrize("text", ["No.", "<tool_call>\nnothing", '{"name": "weather"', call()])
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "now"}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "now"}}],
                },
            },
            {"now"},
        ),
    ],
)
def test_a_call_that_is_demanded_comes_and_fits(
    client: openai.OpenAI, text: str, choice: Any, names: set[str]
) -> None:
    for parallel in (True, False):
        answer = ask(client, text, tool_choice=choice, parallel_tool_calls=parallel, max_tokens=400)
        calls = said(answer)
        assert calls
        assert {name for name, _ in calls} <= names
        for name, arguments in calls:
            if name == "weather":
                Weather.model_validate(arguments)
            else:
                assert arguments == {}
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None


def test_a_strict_tool_is_called_right_or_not_at_all(client: openai.OpenAI) -> None:
    wrong = call("weather", {"city": "Paris", "days": 30})
    choice = ask(client, wrong, tools=[tool(strict=True), NOW])
    [(name, arguments)] = said(choice)
    assert name == "weather"
    Weather.model_validate(arguments)
    assert ask(client, "In words.", tools=[tool(strict=True)]).message.content == "In words."


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("cut", [3, 12, 30])
def test_a_call_that_max_tokens_cuts_leaves_no_markup(
    client: openai.OpenAI, choice: str, cut: int, stream: bool
) -> None:
    asked: Any = {"tool_choice": choice, "stream": stream, "tools": [tool(), NOW]}
    reply: Any = client.chat.completions.create(
        model="echo",
        messages=user(call("now", {}) + call()),
        temperature=0,
        max_tokens=len(call("now", {})) + cut,
        **asked,
    )
    if stream:
        deltas = [chunk.choices[0] for chunk in reply]
        assert not any(delta.delta.content for delta in deltas)
        names = [c.function.name for d in deltas for c in d.delta.tool_calls or []]
        assert ([name for name in names if name], deltas[-1].finish_reason) == (["now"], "length")
        return
    assert said(reply.choices[0]) == [("now", {})]
    assert reply.choices[0].message.content is None
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_calls_that_are_demanded_end_with_the_first_repeat(
    client: openai.OpenAI, stream: bool
) -> None:
    text = (call() + call("now", {})) * 3
    asked: dict[str, Any] = {"tools": [tool(), NOW], "tool_choice": "required", "temperature": 0}
    reply: Any = client.chat.completions.create(
        model="echo", messages=user(text), stream=stream, **asked
    )
    if stream:
        found = [c for chunk in reply for c in chunk.choices[0].delta.tool_calls or []]
        assert [made.function.name for made in found if made.id] == ["weather", "now"]
        return
    assert said(reply.choices[0]) == [("weather", {"city": "Lima", "days": 3}), ("now", {})]
    assert reply.choices[0].finish_reason == "tool_calls"
    # It ended there: at most the third call was computed.
    assert reply.usage.completion_tokens <= 2 * len(call()) + len(call("now", {}))


def test_a_named_tool_is_called_once(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "now"}}
    choice = ask(client, call("now", {}) * 5, tool_choice=named)
    assert said(choice) == [("now", {})]


FORM = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"a":1}', '{"a":1}', []),
        (call("now", {}), None, [("now", {})]),
        # Other values are neither.
        ('{"b":1}', '{"a":1}', []),
    ],
)
def test_tools_with_a_form_are_calls_or_else_an_answer_of_the_form(
    client: openai.OpenAI, text: str, content: str | None, calls: list[Any]
) -> None:
    schema = {"name": "form", "schema": FORM | {"additionalProperties": False}}
    form = {"type": "json_schema", "json_schema": schema}
    choice = ask(client, text, response_format=form, stop=["1", "now"])
    assert (choice.message.content, said(choice)) == (content, calls)


def test_an_answer_of_the_form_is_streamed_although_there_are_tools(client: openai.OpenAI) -> None:
    schema = {"name": "form", "schema": {"type": "object", "additionalProperties": {}}}
    text = '{"a":"<tool_call> is no call","b":[1,2]}'
    chunks: Any = client.chat.completions.create(
        model="echo",
        messages=user(text),
        temperature=0,
        stream=True,
        tools=[tool(), NOW],
        response_format={"type": "json_schema", "json_schema": schema},
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert not any(delta.tool_calls for delta in deltas)
    pieces = [delta.content for delta in deltas if delta.content]
    assert ("".join(pieces), pieces[:2]) == (text, ["{", '"'])


def test_stop_texts_count_before_calls_and_not_in_them(client: openai.OpenAI) -> None:
    assert said(ask(client, f"I look.\n{call()}", stop=["Lima", "arguments"]))
    stopped = ask(client, f"I look.\n{call()}", stop="look")
    assert (stopped.message.content, said(stopped)) == ("I ", [])


def test_a_round_trip(client: openai.OpenAI, server: Served) -> None:
    talk: list[Any] = user(f"{call()}\n{call('now', {})}")
    first = ask(client, talk[0]["content"]).message
    talk.append(first)
    for made in first.tool_calls or []:
        talk.append({"role": "tool", "tool_call_id": made.id, "content": f"({made.function.name})"})
    talk += user("Thanks.")
    reply = client.chat.completions.create(
        model="echo", messages=talk, temperature=0, tools=[tool(), NOW]
    )
    assert reply.choices[0].message.content == "Thanks."
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    # The calls stand in the prompt as the template writes them, which is how the model wrote them,
    # but for the line feed before the first.
    cached = reply.usage.prompt_tokens_details.cached_tokens or 0
    assert cached >= len("tools: ") + len(talk[0]["content"])
    # As a dict of all fields, and as the result alone.
    again = [talk[0], first.model_dump(), *talk[2:4]]
    client.chat.completions.create(model="echo", messages=again, tools=[tool(), NOW], max_tokens=1)
    # A conversation goes on without tools, too.
    assert ask(client, "", messages=talk, tools=[]).message.content == "Thanks."


def made_call(key: str = "c1", arguments: str = '{"city": "Lima"}') -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": key, "type": "function", "function": function}


def assistant(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def result(key: str = "c1", content: Any = "21") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": key, "content": content}


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([*user("x"), result()], "messages.1.tool_call_id", "must answer a call"),
        ([*user("x"), assistant(made_call()), result("c2")], "messages.2.tool_call_id", "'c2'"),
        ([*user("x"), assistant(made_call()), *user("y")], "messages.2", "'c1'"),
        ([*user("x"), assistant(made_call(), made_call("c2")), result()], "messages", "'c2'"),
        ([*user("x"), assistant(made_call(), made_call())], "messages.1.tool_calls.1.id", "Two"),
        (
            [*user("x"), assistant(made_call(arguments="[1]")), result()],
            "messages.1.tool_calls.0.function.arguments",
            "JSON object",
        ),
        (
            [*user("x"), assistant(made_call(arguments="{oops")), result()],
            "messages.1.tool_calls.0.function.arguments",
            "JSON object",
        ),
        ([*user("x"), assistant(made_call()), result(content=None)], "messages.2.content", ""),
        ([{**user("x")[0], "tool_calls": [made_call()]}], "messages.0.tool_calls", "assistant"),
    ],
)
def test_conversations_that_make_no_sense(
    client: openai.OpenAI, messages: list[Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words or ".") as caught:
        ask(client, "", messages=messages)
    assert caught.value.param == param


def test_an_empty_result_is_a_result(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "1"}]
    lengths = []
    for content in ("", parts):
        talk = [*user("x"), assistant(made_call(arguments="")), result(content=content)]
        reply = client.chat.completions.create(model="echo", messages=talk, max_tokens=1)
        assert reply.usage is not None
        lengths.append(reply.usage.prompt_tokens)
    assert lengths[1] - lengths[0] == len("21")


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tools": [NOW, NOW]}, "tools.1.function.name", "Two tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, None, ""),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, None, ""),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "tools only"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tool_choice": "maybe"}, "tool_choice", "must be"),
        ({"tool_choice": 3}, "tool_choice", "must be"),
        ({"tools": [tool(description="x" * 200_000)]}, "tools", "200,000"),
    ],
)
def test_tools_that_cannot_be_used(
    client: openai.OpenAI, change: dict[str, Any], param: str | None, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words or ".") as caught:
        ask(client, "x", **change)
    assert param in (None, caught.value.param)
    assert caught.value.param


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"type": "array"}, "object"),
        ({"type": "object", "properties": 3}, "JSON Schema"),
        ({"type": "object", "properties": {"a": {"type": "strnig"}}}, "JSON Schema"),
        ({"type": "object", "properties": {"a": {"pattern": "(?=a)"}}}, "look-around"),
        ({"type": "object", "patternProperties": {"(a+)+$": {}}}, "patternProperties"),
        ({"type": "object", "properties": {"a": {"$ref": "https://a.b/c"}}}, "same schema"),
        ({"type": "object", "description": "x" * 100_000}, "100,000"),
        ({"$schema": [], "type": "object"}, "JSON Schema"),
    ],
)
def test_parameters_that_cannot_be_checked(
    client: openai.OpenAI, parameters: Any, words: str
) -> None:
    broken = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(openai.BadRequestError, match=words or ".") as caught:
        ask(client, "x", tools=[NOW, broken])
    assert caught.value.param == "tools.1.function.parameters"
    assert caught.value.code == "invalid_function_parameters"


def test_patterns_are_matched_in_linear_time(client: openai.OpenAI) -> None:
    class Word(BaseModel):
        text: str = Field(pattern="^(a+)+$")

    good, bad = "a" * 40, "a" * 40 + "!"
    assert said(ask(client, call("word", {"text": good}), tools=[tool(Word)]))
    assert not said(ask(client, call("word", {"text": bad}), tools=[tool(Word)]))


def test_a_schema_that_cannot_be_enforced_may_be_called_but_not_demanded(
    client: openai.OpenAI,
) -> None:
    parameters = {"type": "object", "properties": {"n": {"not": {"const": 3}}}, "required": ["n"]}
    odd: Any = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    assert said(ask(client, call("odd", {"n": 4}), tools=[odd])) == [("odd", {"n": 4})]
    assert said(ask(client, call("odd", {"n": 3}), tools=[odd])) == []
    with pytest.raises(openai.BadRequestError, match="'odd'") as caught:
        ask(client, "x", tools=[odd], tool_choice="required")
    assert caught.value.param == "tools"


def test_a_model_that_knows_no_tools_gets_them_in_generic_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        served(FakeModels(echo=EchoEngine)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        reply: Any = client.chat.completions.create(
            model="echo", messages=user(call()), tools=[tool()], temperature=0
        )
        assert said(reply.choices[0]) == [("weather", {"city": "Lima", "days": 3})]
        assert reply.edgesdk == {"tools": "generic"}
        ask(client, "x")
        assert caplog.text.count("knows no tools") == 1
        assert ask(client, "Hi", tool_choice="none").message.content == "Hi"


def test_tool_choice_none_calls_nothing(client: openai.OpenAI) -> None:
    choice = ask(client, call(), tool_choice="none")
    assert choice.message.content == call()
    assert choice.message.tool_calls is None


def test_without_llguidance_calls_are_still_read(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert said(ask(client, call()))
    with pytest.raises(openai.InternalServerError, match=r"edgesdk\[structure\]") as caught:
        ask(client, call(), tool_choice="required")
    assert (caught.value.status_code, caught.value.param) == (501, "tools")


def test_calls_are_counted() -> None:
    models = FakeModels(template=TOOL_TEMPLATE, echo=EchoEngine)
    with (
        served(models) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        ask(client, f"{call()}{call()}")
        list(
            client.chat.completions.create(
                model="echo", messages=user(call()), tools=[tool()], temperature=0, stream=True
            )
        )
        assert 'edgesdk_tool_calls_total{model="echo"} 3.0' in server.get("/metrics").text
