"""Answers held to tool calls, in the ways that families write them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from edgesdk.errors import InvalidOption
from edgesdk.generation.streaming import read_all
from edgesdk.options import Options
from edgesdk.request import Request
from edgesdk.structured.grammar_constraint import GrammarVocabulary
from edgesdk.structured.output_format import OutputFormat
from edgesdk.tools.call_grammar import tool_call_format, with_enforceable_schemas
from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.call_table import HERMES, MISTRAL_NAMED, QWEN_CODER, SMOLLM
from edgesdk.tools.calls import ToolCall, parse_calls
from edgesdk.tools.tool_format import ToolFormat
from tests.support.control_tokenizer import ControlTokenizer
from tests.support.fake_engine import VOCAB
from tests.support.random_engine import noise_model

TOKENIZER = ControlTokenizer(["[TOOL_CALLS]"])
LLAMA = CallSyntax(('{"name": "', '", "parameters": ', "}"))
MISTRAL = CallSyntax(
    ('{"name": "', '", "arguments": ', ', "id": "', '"}'),
    ("name", "arguments", "id"),
    opening="[TOOL_CALLS][",
    between=", ",
    closing="]",
)
ARGUMENTS_FIRST = CallSyntax(
    ('<tool_call>\n{ "arguments": ', ', "name": "', '"}\n</tool_call>'),
    ("arguments", "name"),
    between=" \n",
)
NAMED, PARAMETERS = MISTRAL_NAMED, QWEN_CODER
SYNTAXES = {
    "named": NAMED,
    "hermes": HERMES,
    "smollm": SMOLLM,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "arguments first": ARGUMENTS_FIRST,
}


def _spec(name: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


SPECS = [
    _spec("get", {"city": {"type": "string", "maxLength": 9}}, ["city"]),
    _spec(
        "get_all",
        {
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
            "place": {"$ref": "#/$defs/place"},
        },
        ["days"],
    ),
    {"type": "function", "function": {"name": "now"}},
]
SPECS[1]["function"]["parameters"]["$defs"] = {"place": {"enum": ["Lima", "Oslo"]}}
LIMA = ToolCall("get", {"city": "Lima"}, id="abcdefgh1")
WEEK = ToolCall("get_all", {"days": 7, "place": "Oslo"}, id="abcdefgh2")


def _structure(syntax: CallSyntax | None, **asked: Any) -> OutputFormat:
    tool_format = ToolFormat(tools=True, calls=2, results=True, syntax=syntax)
    return tool_call_format(tool_format, SPECS, TOKENIZER, **asked)


def _allows(structure: OutputFormat, text: str, *, whole: bool = True) -> bool:
    """Whether an answer may be, or begin with, `text`."""
    constraint = GrammarVocabulary(TOKENIZER).constraint(structure.grammar)
    for token in TOKENIZER.encode(text):
        if not np.isfinite(constraint.masked(np.zeros(VOCAB + 2, np.float32))[token]):
            return False
        constraint.accept(token)
    return constraint.complete or not whole


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_calls_in_the_familys_own_syntax_are_allowed_and_read(
    syntax: CallSyntax, choice: str
) -> None:
    several = [LIMA] if syntax.between is None else [LIMA, WEEK]
    for calls in ([LIMA], [WEEK], several):
        text = syntax.write(calls)
        assert _allows(_structure(syntax, choice=choice), text), text
        read = parse_calls(text)
        assert [(c.name, c.arguments) for c in read] == [(c.name, c.arguments) for c in calls]
        assert [c.id for c in read] == (
            [c.id for c in calls] if "id" in syntax.fields else [""] * len(calls)
        )


@pytest.mark.parametrize("choice", ["required", "auto"])
def test_calls_whose_values_have_no_quotes_are_held_to_their_tools(choice: str) -> None:
    structure = _structure(PARAMETERS, choice=choice)
    for calls in ([LIMA], [WEEK], [LIMA, WEEK], [ToolCall("now", {})]):
        text = PARAMETERS.write(calls)
        assert _allows(structure, text), text
        read = structure.read(text)
        assert [(c.name, c.arguments) for c in read] == [(c.name, c.arguments) for c in calls]
    for call in (
        ToolCall("got", {"city": "Lima"}),
        ToolCall("get", {}),
        ToolCall("get_all", {"days": 8}),
        ToolCall("get_all", {"days": 3, "place": "Rome"}),
        ToolCall("now", {"zone": "UTC"}),
    ):
        assert not _allows(structure, PARAMETERS.write([call]), whole=False)
    assert _allows(structure, PARAMETERS.write([ToolCall("get", {"city": "a\n<b>\n</c>"})]))


def test_marks_within_a_call_may_be_control_tokens() -> None:
    tokenizer = ControlTokenizer(["[TOOL_CALLS]", "[ARGS]"])
    tool_format = ToolFormat(tools=True, calls=2, results=True, syntax=NAMED)
    structure = tool_call_format(tool_format, SPECS, tokenizer, choice="required")
    constraint = GrammarVocabulary(tokenizer).constraint(structure.grammar)
    for token in tokenizer.encode(NAMED.write([LIMA, WEEK])):
        assert np.isfinite(constraint.masked(np.zeros(VOCAB + 2, np.float32))[token])
        constraint.accept(token)
    assert constraint.complete
    # Neither mark has a text.
    read = parse_calls('get{"city": "Lima"}get_all{"days": 7, "place": "Oslo"}')
    assert [(c.name, c.arguments) for c in read] == [(c.name, c.arguments) for c in (LIMA, WEEK)]


@pytest.mark.parametrize("choice", ["required", "auto"])
@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
@pytest.mark.parametrize(
    "call",
    [
        ToolCall("got", {"city": "Lima"}),
        ToolCall("get", {}),
        ToolCall("get", {"city": 5}),
        ToolCall("get", {"city": "much too long a name"}),
        ToolCall("get", {"city": "Lima", "mood": "good"}),
        ToolCall("get_all", {"days": 8}),
        ToolCall("get_all", {"days": 3, "place": "Rome"}),
        ToolCall("now", {"zone": "UTC"}),
    ],
)
def test_calls_that_a_tool_would_refuse_cannot_be_written(
    syntax: CallSyntax, choice: str, call: ToolCall
) -> None:
    text = syntax.write([ToolCall(call.name, call.arguments, id="abcdefgh1")])
    assert not _allows(_structure(syntax, choice=choice), text, whole=False), text


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_words_are_free_unless_a_call_is_required(syntax: CallSyntax) -> None:
    for words in ("It is 12 degrees.\nWarm <b>enough</b> [1] {x}", "x", ""):
        assert _allows(_structure(syntax), words)
        assert not _allows(_structure(syntax, choice="required"), words)


def test_words_may_come_before_a_call_and_none_after_it() -> None:
    call = HERMES.write([LIMA])
    assert _allows(_structure(HERMES), f"I look.\n{call}")
    assert not _allows(_structure(HERMES), f"{call}\nIt is", whole=False)
    assert not _allows(_structure(HERMES), 'I <tool_call>{"name"', whole=False)


def test_a_chosen_tool_is_the_only_one_and_called_once() -> None:
    structure = _structure(HERMES, choice="get")
    assert _allows(structure, HERMES.write([LIMA]))
    assert not _allows(structure, HERMES.write([WEEK]), whole=False)
    assert not _allows(structure, HERMES.write([LIMA, LIMA]), whole=False)


def test_parallel_calls_can_be_forbidden() -> None:
    for choice in ("auto", "required"):
        structure = _structure(HERMES, choice=choice, parallel=False)
        assert _allows(structure, HERMES.write([LIMA]))
        assert not _allows(structure, HERMES.write([LIMA, WEEK]), whole=False)


def test_an_unknown_syntax_leaves_words_free_and_no_call_can_be_demanded() -> None:
    assert _allows(_structure(None), '<get>{"city": 5}')
    for choice in ("required", "get"):
        with pytest.raises(InvalidOption, match="does not show how to write one"):
            _structure(None, choice=choice)


@pytest.mark.parametrize("syntax", SYNTAXES.values(), ids=SYNTAXES)
def test_noise_that_is_held_to_calls_is_calls_with_valid_arguments(syntax: CallSyntax) -> None:
    model = noise_model(TOKENIZER)
    schemas = {
        s["function"]["name"]: s["function"].get(
            "parameters", {"type": "object", "maxProperties": 0}
        )
        for s in SPECS
    }
    for seed in range(10):
        prompt = [5, 6, seed]
        request = Request(
            [],
            Options(temperature=1.5, seed=seed, max_tokens=2000),
            lambda messages, specs, ids=prompt: ids,
            _structure(syntax, choice="required", parallel=False),
        )
        reply = read_all(
            model.runtime.answer(
                model.runtime.engine.new_state(), request, on_end=lambda reply: None
            )
        )
        [call] = reply.tool_calls
        assert call.problem is None
        jsonschema.validate(call.arguments, schemas[call.name])


def test_a_schema_that_cannot_be_enforced_is_refused_by_name_or_loosened() -> None:
    odd = _spec("odd", {"a": {"type": "string", "pattern": "^(?!x).*$"}}, ["a"])
    tool_format = ToolFormat(tools=True, calls=2, results=True, syntax=HERMES)
    with pytest.raises(InvalidOption, match=r"'odd'.*pattern"):
        tool_call_format(tool_format, [odd], TOKENIZER)
    loose = tool_call_format(
        tool_format, with_enforceable_schemas([odd, *SPECS]), TOKENIZER, choice="required"
    )
    assert _allows(loose, HERMES.write([ToolCall("odd", {"b": [1]})]))
    assert not _allows(loose, HERMES.write([ToolCall("get", {})]), whole=False)


def test_what_cannot_be_chosen_is_refused() -> None:
    tool_format = ToolFormat(tools=True, calls=2, results=True, syntax=HERMES)
    with pytest.raises(InvalidOption, match=r"'none'.*get_all"):
        _structure(HERMES, choice="none")
    with pytest.raises(InvalidOption, match="no tools"):
        tool_call_format(tool_format, [], TOKENIZER)


def test_names_and_texts_of_schemas_may_hold_any_character() -> None:
    name = 'q"uo\\te'
    spec = _spec(name, {'k"\n': {"const": 'line\n"two" %json {'}}, ['k"\n'])
    tool_format = ToolFormat(tools=True, calls=2, results=True, syntax=HERMES)
    structure = tool_call_format(tool_format, [spec], TOKENIZER, choice="required")
    text = HERMES.write([ToolCall(name, {'k"\n': 'line\n"two" %json {'})])
    assert _allows(structure, text)
    assert json.loads(text[len("<tool_call>\n") : -len("\n</tool_call>")])["name"] == name
