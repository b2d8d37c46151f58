"""Which calls an answer may make, and reading them piece by piece."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk.server.api_errors import ApiError
from edgesdk.server.callable_tools import (
    AnswerPart,
    CallableTools,
    ToolCallReader,
    ToolDefinition,
    argument_check,
    callable_tools_of,
)
from edgesdk.tools.calls import ToolCall

SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {},
            {"type": "string", "pattern": "^a"},
            {"type": "integer", "minimum": 1},
            {"enum": [1, "a"]},
            {"$ref": "#"},
            {"$ref": "#/properties/a"},
            {"$ref": "#/nowhere"},
            {"pattern": 5},
            {"type": 3},
            {"$id": "http://a.b/c", "$ref": "#x"},
            {"$dynamicRef": "http://a.b/c"},
            True,
        ]
    ),
    lambda inner: (
        st.builds(
            lambda key, part: {key: part},
            st.sampled_from(["items", "not", "if", "contains"]),
            inner,
        )
        | st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts})
    ),
    max_leaves=4,
)


@settings(deadline=None)
@given(
    parts=st.dictionaries(st.sampled_from("ab"), SCHEMAS, max_size=2),
    arguments=st.dictionaries(
        st.sampled_from("ab"), st.integers() | st.text(max_size=3) | st.lists(st.integers())
    ),
)
def test_no_schema_makes_the_check_fail(parts: dict[str, Any], arguments: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": parts}
    # It may be refused, and then clearly, but nothing else may happen.
    with suppress(ApiError):
        assert argument_check(schema, param="tools")(arguments) in (True, False)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a schema was fetched")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    schema = {"type": "object", "properties": {"a": {"$dynamicRef": "http://localhost:1/x"}}}
    assert not argument_check(schema, param="tools")({"a": 1})


LIMA = {"city": "Lima"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def tools(*, parallel: bool = True) -> CallableTools:
    spec: dict[str, Any] = {"name": "weather", "parameters": SCHEMA}
    made = callable_tools_of(
        [ToolDefinition.model_validate({"type": "function", "function": spec})], None, parallel
    )
    assert made is not None
    return made


def call(city: str = "Lima") -> str:
    written = json.dumps({"name": "weather", "arguments": {"city": city}})
    return f"<tool_call>\n{written}\n</tool_call>"


def read(pieces: list[str], callable_tools: CallableTools | None = None) -> list[AnswerPart]:
    reader = ToolCallReader(callable_tools or tools())
    parts = [part for piece in pieces for part in reader.feed(piece)]
    return parts + reader.flush()


def text_of(parts: list[AnswerPart]) -> str:
    return "".join(part for part in parts if isinstance(part, str))


def cities(parts: list[AnswerPart]) -> list[str]:
    return [part.arguments["city"] for part in parts if isinstance(part, ToolCall)]


PIECES = st.sampled_from(
    [
        "Well. ",
        "\n",
        " ",
        "<",
        "<tool_",
        "<tool_call>",
        "</tool_call>",
        "{",
        "```json\n",
        call(),
        call("Oslo"),
        call("</tool_call>"),
        call("Oslo")[:-14],
        '<tool_call>{"name": "absent"}</tool_call>',
        '{"name": "weather", "parameters": {"city": "Oslo"}}',
    ]
)
ANSWERS = st.lists(PIECES, max_size=5).map("".join)


@settings(deadline=None)
@given(text=ANSWERS, cuts=st.lists(st.integers(0, 300), max_size=6), parallel=st.booleans())
def test_how_an_answer_is_cut_into_pieces_makes_no_difference(
    text: str, cuts: list[int], parallel: bool
) -> None:
    callable_tools = tools(parallel=parallel)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    for split in (pieces, list(text)):
        parts, whole = read(split, callable_tools), read([text], callable_tools)
        assert text_of(parts) == text_of(whole)
        assert cities(parts) == cities(whole)
        assert "" not in parts
        assert parallel or len(cities(parts)) <= 1


@settings(deadline=None)
@given(text=ANSWERS)
def test_without_a_call_no_letter_is_lost(text: str) -> None:
    parts = read(list(text))
    # What is between the marks of a call is one, well or badly formed.
    if not cities(parts) and "</tool_call>" not in text:
        assert text_of(parts) == text


def test_a_malformed_call_is_not_shown_and_one_of_no_tool_is_text() -> None:
    for malformed in ("<tool_call></tool_call>", '<tool_call>{"name": weather}</tool_call>'):
        assert text_of(read(list(f"Well. {malformed} So."))) == "Well. So."
        assert cities(read(list(malformed + call()))) == ["Lima"]
    absent = '<tool_call>{"name": "absent"}</tool_call>'
    assert text_of(read(list(absent))) == absent


def test_text_comes_as_soon_as_it_cannot_be_a_call() -> None:
    reader = ToolCallReader(tools())
    assert reader.feed("Hi") == ["Hi"]
    assert reader.feed(" ") == []
    assert reader.feed("there <to") == [" there"]
    assert reader.feed("p>") == [" <top>"]


def test_a_call_comes_as_soon_as_it_is_whole() -> None:
    reader = ToolCallReader(tools())
    assert reader.feed(call()[:-1]) == []
    assert cities(reader.feed(">")) == ["Lima"]
    assert cities(reader.feed(f"\n{call('Oslo')}")) == ["Oslo"]
    assert reader.flush() == []


def test_a_closing_tag_in_an_argument_closes_nothing() -> None:
    assert cities(read(list(call("a</tool_call>b")))) == ["a</tool_call>b"]


@pytest.mark.parametrize("city", ["\ud800", "a\udfff"])
def test_arguments_that_are_no_unicode_are_text(city: str) -> None:
    assert text_of(read([call(city)])) == call(city)


def test_arguments_are_json_for_any_parser() -> None:
    loose = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    callable_tools = callable_tools_of([ToolDefinition.model_validate(loose)], None, None)
    assert callable_tools is not None
    for number in ("NaN", "Infinity", "-Infinity", "1e999"):
        text = f'<tool_call>{{"name": "f", "arguments": {{"x": {number}}}}}</tool_call>'
        assert read([text], callable_tools) == [text]
    [made] = read(['<tool_call>{"name": "f", "arguments": {"x": "é"}}</tool_call>'], callable_tools)
    assert isinstance(made, ToolCall)
    assert made.arguments == {"x": "é"}


@pytest.mark.parametrize(
    "written",
    [
        '<tool_calls>[{"name": "weather", "arguments": {"city": "Lima"}}]</tool_calls>',
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "Lima"}}]<|/tool_call|>',
        '[TOOL_CALLS]weather[ARGS]{"city": "Lima"}',
        '<function=weather>{"city": "Lima"}</function>',
        "<function=weather>\n<parameter=city>\nLima\n</parameter>\n</function>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nLima\n</parameter>\n</function>\n"
        "</tool_call>",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_calls_are_found_in_the_ways_that_families_write_them(written: str, step: int) -> None:
    for words in ("", "Well. "):
        text = words + written
        parts = read([text[i : i + step] for i in range(0, len(text), step)])
        assert cities(parts) == ["Lima"]
        assert text_of(parts) == words.strip()


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_name_that_opens_an_answer_may_open_a_call(step: int) -> None:
    # So Mistral's calls look where their marks have no text.
    for text, found in (('weather{"city": "Lima"}', ["Lima"]), ("weather is fine", [])):
        parts = read([text[i : i + step] for i in range(0, len(text), step)])
        assert cities(parts) == found
        assert text_of(parts) == ("" if found else text)
