"""Tool calls in answers, as families write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.tools.call_table import HERMES
from edgesdk.tools.calls import ToolCall, parse_calls

LIMA = ToolCall("weather", {"city": "Lima"})
OSLO = ToolCall("weather", {"city": "Oslo"})
_LIMA = '{"name": "weather", "arguments": {"city": "Lima"}}'
_OSLO = '{"name": "weather", "arguments": {"city": "Oslo"}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{_LIMA}\n</tool_call>", [LIMA]),
        (f"I look.\n<tool_call>{_LIMA}</tool_call>\n<tool_call>{_OSLO}</tool_call>", [LIMA, OSLO]),
        (f"<tool_call>[{_LIMA}, {_OSLO}]</tool_call>", [LIMA, OSLO]),
        (f"<tool_call>\n{_LIMA}\n{_OSLO}\n</tool_call>", [LIMA, OSLO]),
        (f"<tool_call>{_LIMA}", [LIMA]),
        ('{"name": "weather", "parameters": {"city": "Lima"}}', [LIMA]),
        (f"<|python_tag|>{_LIMA}; {_OSLO}", [LIMA, OSLO]),
        (f"```json\n{_LIMA}\n```", [LIMA]),
        (f"{{{_LIMA}}}", [LIMA]),
        (f"<tool_call>\n{{{_LIMA}}}\n</tool_call>", [LIMA]),
        (f'{{"type": "function", "function": {_LIMA}}}', [LIMA]),
        ('<tool_call>{"name": "now"}</tool_call>', [ToolCall("now", {})]),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            [ToolCall("f", {"a": 1})],
        ),
        (f"<tool_calls>[{_LIMA}, {_OSLO}]</tool_calls>", [LIMA, OSLO]),
        (f"Well: <|tool_call|>[{_LIMA}]<|/tool_call|>", [LIMA]),
        (f"<function_call> {_LIMA} </function_call>", [LIMA]),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Lima"}', [LIMA]),
        ('I look.[TOOL_CALLS] weather [ARGS] {"city": "Lima"}', [LIMA]),
        (
            '[TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{"city": "Lima"}'
            "[TOOL_CALLS]now[CALL_ID]abc123deg[ARGS]{}",
            [
                ToolCall("weather", {"city": "Lima"}, id="abc123def"),
                ToolCall("now", {}, id="abc123deg"),
            ],
        ),
        ('weather{"city": "Lima"}', [LIMA]),
        ('weather{"city": "Lima"}weather{"city": "Oslo"}', [LIMA, OSLO]),
        ('<function=weather>{"city": "Lima"}</function>', [LIMA]),
        ('Well. <function=weather>{"city": "Lima"}</function>', [LIMA]),
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nLima\n</parameter>\n</function>\n"
            "</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
            [LIMA, ToolCall("now", {})],
        ),
        ("<function=weather><parameter=city>Lima</parameter></function>", [LIMA]),
        (
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Lima</arg_value>\n</tool_call>\n"
            "<tool_call>now\n</tool_call>",
            [LIMA, ToolCall("now", {})],
        ),
        ('[weather(city="Lima"), now()]', [LIMA, ToolCall("now", {})]),
        (
            '<|tool_call_start|>[f(a=[1, {"b": None}], c=-2.5, d=True)]<|tool_call_end|>',
            [ToolCall("f", {"a": [1, {"b": None}], "c": -2.5, "d": True})],
        ),
        (
            "<function=weather>\n<parameter=city>\nLima\n</parameter>\n</function>\n"
            "<function=weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
            [LIMA, OSLO],
        ),
    ],
)
def test_calls_are_found_in_the_ways_that_families_write_them(
    text: str, calls: list[ToolCall]
) -> None:
    assert list(parse_calls(text)) == calls


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "It is 12 degrees.",
            '{"name": "Bob", "age": 3}',
            "[1, 2]",
            "{oops",
            "Use {x}.",
            "[]",
        ),
        *(
            "f{x}",
            'Result: {"a": 1}',
            'Result {"a": 1}',
            'f{"a": 1} and so on',
            "<function>x</function>",
        ),
    ],
)
def test_an_answer_in_words_or_other_json_is_no_call(text: str) -> None:
    assert parse_calls(text) == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('<tool_call>{"name": "weather", "argum', "call of weather is not valid"),
        ("<tool_call></tool_call>", "empty"),
        ("<tool_call>5</tool_call>", "not an object"),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "of f are not an object"),
        ('<tool_call>{"name": "f", "arguments": "{"}</tool_call>', "of f are not valid JSON"),
        ('[TOOL_CALLS]f[ARGS]{"a": ', "call of f is not valid"),
        ('<function=f>{"a": </function>', "call of f is not valid"),
        ("<tool_call>\n<function=f>\n<parameter=a>\n1", "an argument does not end"),
        ("<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1", "an argument does not end"),
    ],
)
def test_a_tagged_call_that_is_broken_says_why(text: str, problem: str) -> None:
    [call] = parse_calls(text)
    assert problem in str(call.problem)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    arguments=st.dictionaries(st.text(), _JSON, max_size=3),
    write=st.sampled_from(
        [
            lambda call: f"<tool_call>\n{call}\n</tool_call>",
            lambda call: f"Well. <tool_call>[{call}]</tool_call> So.",
            lambda call: call.replace('"arguments"', '"parameters"', 1),
        ]
    ),
)
def test_arguments_come_through_as_they_were_written(
    arguments: dict[str, Any], write: Callable[[str], str]
) -> None:
    call = json.dumps({"name": "f", "arguments": arguments})
    assert parse_calls(write(call)) == (ToolCall("f", arguments),)


@given(st.text(alphabet='<tool_call>/{}[]":, \nname1') | st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    parse_calls(text)
    parse_calls(f"<tool_call>{text}</tool_call>")


def test_a_tag_within_a_text_does_not_end_a_call() -> None:
    arguments = {"a": "</tool_call>", "b": "<tool_call>{", "</tool_call>": 1}
    text = HERMES.write([ToolCall("f", arguments), LIMA])
    assert parse_calls(text) == (ToolCall("f", arguments), LIMA)


def test_a_tag_within_an_untagged_call_begins_none() -> None:
    arguments = {"a": "<tool_call>{}</tool_call>", "<tool_call>": 1}
    call = json.dumps({"name": "f", "arguments": arguments})
    for text in (call, f"[{call}]", f"```json\n{call}\n```"):
        assert parse_calls(text) == (ToolCall("f", arguments),)
        assert parse_calls(text).words == ""


def test_mistral_calls_have_ids() -> None:
    call = '{"name": "weather", "arguments": {"city": "Lima"}, "id": "abcdefgh1"}'
    for text in (f"[TOOL_CALLS][{call}]", f"[{call}]", f"[TOOL_CALLS] [{call}]"):
        assert parse_calls(text) == (ToolCall("weather", {"city": "Lima"}, id="abcdefgh1"),)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "1", "1"),
        ({"type": "string"}, "007", "007"),
        ({"type": "string"}, '{"a": 1}', '{"a": 1}'),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "12", "12"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"const": "true"}, "true", "true"),
        ({"type": "integer"}, "1", 1),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "false", False),
        ({"type": "array"}, '[1, "a"]', [1, "a"]),
        ({"type": "integer"}, "many", "many"),
        ({}, "2.5", 2.5),
        ({}, "words", "words"),
    ],
)
def test_values_without_quotes_are_of_the_type_that_the_schema_wants(
    schema: dict[str, Any], text: str, value: Any
) -> None:
    parameters = {"type": "object", "properties": {"x": schema, "y": {"type": "string"}}}
    specs = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    answer = (
        f"<tool_call>\n<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>\n</tool_call>"
    )
    [call] = parse_calls(answer, specs)
    assert call == ToolCall("f", {"x": value})


@pytest.mark.parametrize(
    "call",
    [
        "<tool_calls>[]</tool_calls>",
        "[TOOL_CALLS]f[ARGS]{}",
        "<function=f>{}</function>",
        "<|tool_call|>[]",
    ],
)
def test_words_before_a_call_are_told_from_it(call: str) -> None:
    assert parse_calls(f"I look.\n{call}").words == "I look."
