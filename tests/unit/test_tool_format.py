"""What is found out of chat templates, and what they then write of calls and results."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.text.template import ChatTemplate
from edgesdk.tools.call_messages import call_message, result_message
from edgesdk.tools.calls import ToolCall, parse_calls
from edgesdk.tools.tool_format import ToolFormat, detect_tool_format
from tests.support import call_templates

FAMILIES = {
    "qwen": call_templates.QWEN,
    "hermes": call_templates.HERMES,
    "llama": call_templates.LLAMA,
    "mistral": call_templates.MISTRAL,
    "smollm": call_templates.SMOLLM,
    "xml": call_templates.XML,
    "named": call_templates.NAMED,
    "parameters": call_templates.PARAMETERS,
    "listed": call_templates.LISTED,
    "keyed": call_templates.KEYED,
}
SPEC = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
            "required": ["city"],
        },
    },
}
ASKED = {"role": "user", "content": "How is it?"}
LIMA = ToolCall("weather", {"city": "Lima", "days": [1, 2]}, id="call00000")
OSLO = ToolCall("weather", {"city": "Ål"}, id="call00001")


def _render(source: str, messages: list[dict[str, Any]], *, ask: bool = True) -> str:
    template = ChatTemplate(source)
    return template.render(
        detect_tool_format(template).conversation(messages, [SPEC]),
        tools=[SPEC],
        add_generation_prompt=ask,
        bos_token="",
        eos_token="",
    )


@pytest.mark.parametrize(
    ("family", "tools", "calls", "results"),
    [
        ("qwen", True, 2, True),
        ("hermes", True, 2, True),
        ("llama", True, 1, True),
        ("mistral", True, 2, True),
        ("smollm", False, 0, False),
        ("xml", True, 2, True),
        ("named", True, 2, True),
        ("parameters", True, 2, True),
        ("listed", True, 2, True),
        ("keyed", True, 2, True),
    ],
)
def test_what_a_template_knows_is_found_out(
    family: str, tools: bool, calls: int, results: bool
) -> None:
    tool_format = detect_tool_format(ChatTemplate(FAMILIES[family]))
    assert (tool_format.tools, tool_format.calls, tool_format.results) == (tools, calls, results)


@pytest.mark.parametrize(
    ("family", "written"),
    [
        (
            "qwen",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Lima", "days": [1, 2]}}\n'
            '</tool_call>\n<tool_call>\n{"name": "weather", "arguments": {"city": "Ål"}}\n'
            "</tool_call>",
        ),
        (
            "hermes",
            '<tool_call>\n{ "arguments": {"city": "Lima", "days": [1, 2]}, "name": "weather"}\n'
            '</tool_call> \n<tool_call>\n{ "arguments": {"city": "Ål"}, "name": "weather"}\n'
            "</tool_call>",
        ),
        (
            "mistral",
            '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Lima", "days": [1, 2]}, '
            '"id": "call00000"}, {"name": "weather", "arguments": {"city": "Ål"}, '
            '"id": "call00001"}]',
        ),
        (
            "smollm",
            '<tool_call>[{"name": "weather", "arguments": {"city": "Lima", "days": [1, 2]}}, '
            '{"name": "weather", "arguments": {"city": "Ål"}}]</tool_call>',
        ),
        (
            "llama",
            '{"name": "weather", "parameters": {"city": "Lima", "days": [1, 2]}}; '
            '{"name": "weather", "parameters": {"city": "Ål"}}',
        ),
        (
            "xml",
            '<tool_call>\n<function=weather>{"city": "Lima", "days": [1, 2]}</function>\n'
            '</tool_call>\n<tool_call>\n<function=weather>{"city": "Ål"}</function>\n</tool_call>',
        ),
        (
            "named",
            '[TOOL_CALLS]weather[ARGS]{"city": "Lima", "days": [1, 2]}\n'
            '[TOOL_CALLS]weather[ARGS]{"city": "Ål"}',
        ),
        (
            "parameters",
            "<tool_call>\n<function=weather>\n<parameter=city>\nLima\n</parameter>\n"
            "<parameter=days>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n"
            "<tool_call>\n<function=weather>\n<parameter=city>\nÅl\n</parameter>\n"
            "</function>\n</tool_call>",
        ),
        (
            "keyed",
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Lima</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>\n"
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Ål</arg_value>\n</tool_call>",
        ),
        (
            "listed",
            '<tool_calls>[{"name": "weather", "arguments": {"city": "Lima", "days": [1, 2]}}, '
            '{"name": "weather", "arguments": {"city": "Ål"}}]</tool_calls>',
        ),
    ],
)
def test_calls_are_written_as_the_template_writes_them(family: str, written: str) -> None:
    syntax = detect_tool_format(ChatTemplate(FAMILIES[family])).syntax
    assert syntax is not None
    assert syntax.write([LIMA, OSLO]) == written
    assert (syntax.between is None) == (family == "llama")
    # What the model is shown of its own answer is what it wrote.
    for calls in ([LIMA], [LIMA, OSLO]):
        text = _render(FAMILIES[family], [ASKED, call_message("", calls)], ask=False)
        assert syntax.write(calls) in text
    read = parse_calls(written, (), syntax)
    assert [(c.name, c.arguments) for c in read] == [(c.name, c.arguments) for c in (LIMA, OSLO)]


@pytest.mark.parametrize("family", FAMILIES)
def test_tools_calls_and_results_reach_the_prompt(family: str) -> None:
    results = [result_message(LIMA, "21 degrees"), result_message(OSLO, "3 degrees")]
    text = _render(FAMILIES[family], [ASKED, call_message("I look.", [LIMA, OSLO]), *results])
    places = [text.find(part) for part in ("Ål", "21 degrees", "3 degrees")]
    assert -1 not in places
    assert places == sorted(places)
    assert "weather" in text[: text.find("Lima")]


def test_a_call_that_is_one_of_too_many_is_written_as_text_with_its_words() -> None:
    text = _render(call_templates.LLAMA, [ASKED, call_message("I look.", [LIMA, OSLO])])
    assert '\n\nI look.\n{"name": "weather", "parameters": {"city": "Lima"' in text


def test_tools_join_the_system_message_where_the_template_knows_none() -> None:
    text = _render(call_templates.SMOLLM, [{"role": "system", "content": "Be kind."}, ASKED])
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou may call functions")
    assert json.dumps(SPEC["function"]) in text
    assert "<tool_call>[{" in text
    results = [result_message(LIMA, "21"), result_message(OSLO, "3")]
    told = _render(call_templates.SMOLLM, [ASKED, call_message("", [LIMA, OSLO]), *results])
    assert (
        "<|im_start|>user\n<tool_response>\n21\n</tool_response>\n"
        "<tool_response>\n3\n</tool_response><|im_end|>" in told
    )


def test_a_model_that_calls_and_is_listed_no_tools_is_told_of_them_in_its_own_syntax() -> None:
    tool_format = detect_tool_format(ChatTemplate(call_templates.UNLISTED))
    assert (tool_format.tools, tool_format.calls, tool_format.results) == (False, 2, True)
    results = [result_message(LIMA, "21"), result_message(OSLO, "3")]
    told = _render(call_templates.UNLISTED, [ASKED, call_message("", [LIMA, OSLO]), *results])
    assert json.dumps(SPEC["function"]) in told
    assert '<｜tool▁call▁begin｜><function-name><｜tool▁sep｜>{"<argument-name>"' in told
    # Such templates take the arguments for a text.
    assert 'weather<｜tool▁sep｜>{"city": "Lima", "days": [1, 2]}<｜tool▁call▁end｜>' in told
    assert "<result>21</result><result>3</result>" in told


def test_without_tools_or_calls_messages_stay_as_they_are() -> None:
    messages = [ASKED, {"role": "assistant", "content": "Hm.", "tool_calls": None}]
    for source in FAMILIES.values():
        assert detect_tool_format(ChatTemplate(source)).conversation(messages) == [
            ASKED,
            {"role": "assistant", "content": "Hm."},
        ]
    assert detect_tool_format(None) == ToolFormat(False, 0, False, detect_tool_format(None).syntax)


_SYNTAXES = {
    family: syntax
    for family, source in FAMILIES.items()
    if (syntax := detect_tool_format(ChatTemplate(source)).syntax) is not None
}
_AS_TEXTS = {
    "a": "two\n\nlines </function>\n",
    "b": [1, {"c": "</parameter>"}],
    "d": None,
    "e": "",
    "f": 2.5,
    "g": "<parameter=x>",
}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_CALLS = st.lists(
    st.builds(
        ToolCall,
        st.text(min_size=1),
        st.dictionaries(st.text(), _JSON, max_size=3),
        id=st.from_regex(r"\A[a-zA-Z0-9]{9}\Z"),
    ),
    min_size=1,
    max_size=3,
)


@given(_CALLS, st.sampled_from(sorted(_SYNTAXES)))
def test_whatever_is_written_is_read_back(calls: list[ToolCall], family: str) -> None:
    named = family in ("xml", "named", "parameters", "keyed")
    if named:
        # The name of a function, as OpenAI's API has it.
        calls = [replace(call, name=f"f-{place}") for place, call in enumerate(calls)]
    if family in ("parameters", "keyed"):
        calls = [replace(call, arguments=_AS_TEXTS) for call in calls]
    read = parse_calls(_SYNTAXES[family].write(calls), (), _SYNTAXES[family])
    assert [(c.name, c.arguments) for c in read] == [(c.name, c.arguments) for c in calls]
