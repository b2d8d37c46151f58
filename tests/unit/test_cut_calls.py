"""Answers that end before their last call does, and calls that are said again."""

from __future__ import annotations

import pytest

from edgesdk.tools.cut_calls import distinct_calls, repeats_itself, whole_calls
from edgesdk.tools.tool_call import ToolCall

ONE, TWO = '{"name": "f", "arguments": {"a": "}"}}', '{"name": "g", "arguments": {}}'


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (f"<tool_call>[{ONE}, {TWO}]</tool_call>", ["f", "g"]),
        (f"<tool_call>[{ONE}, {TWO}", ["f", "g"]),
        (f"<tool_call>[{ONE}, {TWO[:9]}", ["f"]),
        (f"<tool_call>{ONE}</tool_call><tool_call>{TWO[:-1]}", ["f"]),
        (f"<tool_call>[{ONE[:-1]}", []),
        (f"[TOOL_CALLS][{ONE}, {TWO[:5]}", ["f"]),
        ("", []),
    ],
)
def test_the_calls_that_are_whole(text: str, names: list[str]) -> None:
    assert [call.name for call in whole_calls(text)] == names


def test_a_repeat_is_known_when_it_ends() -> None:
    for separator in (", ", ",\n"):
        text = f"<tool_call>[{ONE}{separator}{TWO}{separator}{ONE}"
        ends = [end for end in range(len(text) + 1) if repeats_itself(text[:end])]
        assert ends == [len(text)]


def test_calls_that_differ_in_their_ids_alone_are_one() -> None:
    calls = [ToolCall("f", {"a": 1}, id="x"), ToolCall("f", {"a": 2}), ToolCall("f", {"a": 1})]
    assert distinct_calls(calls) == tuple(calls[:2])
