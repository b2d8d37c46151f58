"""A request is made of keyword arguments once, and its prompt is encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from edgesdk.errors import InvalidOption, RejectedStructure
from edgesdk.options import Options
from edgesdk.request import Request
from edgesdk.tools.call_messages import Message
from edgesdk.tools.calls import ToolCall
from tests.support.fake_engine import fake_model
from tests.support.script_engine import HERMES_TEMPLATE

HELLO = [{"role": "user", "content": "Hello"}]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class Encoder:
    """Counts how often a prompt is encoded."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, messages: Sequence[Message], specs: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        self.calls += 1
        return [len(messages), len(specs)]


def test_a_prompt_is_encoded_once_and_again_only_where_it_changes() -> None:
    encode = Encoder()
    request = Request(HELLO, Options(), encode)
    assert encode.calls == 0
    assert request.tokens is request.tokens
    other = request.replaced(options=Options(max_tokens=1), logprobs=True)
    assert other.tokens is request.tokens
    assert encode.calls == 1
    assert other.options.max_tokens == 1

    longer = request.replaced(messages=[*HELLO, *HELLO])
    assert longer.tokens == [2, 0]
    assert request.tokens == [1, 0]
    assert encode.calls == 2


def test_what_a_prompt_weighs_counts_its_tools() -> None:
    runtime = fake_model(template=HERMES_TEMPLATE).runtime
    plain, armed = runtime.request(HELLO, {}), runtime.request(HELLO, {"tools": [add]})
    assert plain.is_plain
    assert not armed.is_plain
    assert armed.specs[0]["function"]["name"] == "add"
    assert len(armed.tokens) > len(plain.tokens) + len("Add two numbers.")


def test_calls_are_read_with_ids_that_the_conversation_has_not() -> None:
    runtime = fake_model(template=HERMES_TEMPLATE).runtime
    request = runtime.request(HELLO, {"tools": [add]})
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    (call,) = request.read(text)
    assert call == ToolCall("add", {"a": 1, "b": 2}, id=call.id)
    calls = [{"id": call.id, "type": "function", "function": {"name": "add", "arguments": {}}}]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    (again,) = request.replaced(messages=[*HELLO, said]).read(text)
    assert again.id != call.id


@pytest.mark.parametrize(
    ("choice", "told", "must_call"),
    [
        ("auto", "auto", False),
        ("required", "required", True),
        ("add", {"type": "function", "function": {"name": "add"}}, True),
    ],
)
def test_a_choice_of_tools_is_kept_in_the_words_of_the_api(
    choice: str, told: Any, must_call: bool
) -> None:
    runtime = fake_model(template=HERMES_TEMPLATE).runtime
    tools = runtime.request(HELLO, {"tools": [add], "tool_choice": choice}).tools
    assert tools is not None
    assert (tools.choice, tools.must_call) == (told, must_call)
    assert tools.functions["add"].run({"a": 1, "b": 2}) == 3


@dataclass
class Place:
    name: str
    height: int


def test_a_text_that_nothing_held_is_checked_against_the_schema() -> None:
    output_format = fake_model().runtime.request(HELLO, {"schema": Place}).output_format
    assert output_format is not None
    assert output_format.validate is not None
    assert output_format.response_format is not None
    assert output_format.response_format["json_schema"]["schema"]["required"] == ["name", "height"]
    assert output_format.validate('{"name": "Oslo", "height": 23}') == Place("Oslo", 23)
    for text in ('{"name": "Oslo"}', "Oslo", "[1"):
        with pytest.raises(RejectedStructure, match="form"):
            output_format.validate(text)


def test_a_format_that_a_cloud_has_no_words_for_says_so() -> None:
    output_format = fake_model().runtime.request(HELLO, {"choices": ["a", "b"]}).output_format
    assert output_format is not None
    assert output_format.response_format is None


def test_tools_and_a_format_exclude_each_other() -> None:
    runtime = fake_model(template=HERMES_TEMPLATE).runtime
    with pytest.raises(InvalidOption, match="exclude"):
        runtime.request(HELLO, {"tools": [add], "regex": "a"})
