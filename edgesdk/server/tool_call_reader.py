"""Splits an answer into text for the user and calls of tools, as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol, TypeAlias

from edgesdk.server.callable_tools import CallableTools, CheckedCall
from edgesdk.tools.calls import parse_calls

AnswerPart: TypeAlias = str | CheckedCall

_DECODER = json.JSONDecoder()
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
# What an answer starts with that is a call as a whole, as Llama and models without tags have it.
_WHOLE_CALL_PREFIXES = ("{", "[", "<|python_tag|>", "```json", "```\n")


class AnswerReader(Protocol):
    """Takes an answer's text piece by piece."""

    def feed(self, text: str) -> list[AnswerPart]:
        """What is certain after this piece; no text in it is empty."""

    def rest(self) -> list[AnswerPart]:
        """What was held back, at the answer's end."""


class PlainTextReader:
    """Implements `AnswerReader` where no tool may be called."""

    def feed(self, text: str) -> list[AnswerPart]:
        return [text] if text else []

    def rest(self) -> list[AnswerPart]:
        return []


class ToolCallReader:
    """Implements `AnswerReader` where tools may be called."""

    def __init__(self, callable_tools: CallableTools) -> None:
        self._toolset = callable_tools
        self._held = ""
        self._state: Callable[[], list[AnswerPart] | None] = self._at_start
        self._called = False

    def feed(self, text: str) -> list[AnswerPart]:
        self._held += text
        parts: list[AnswerPart] = []
        while (found := self._state()) is not None:
            parts += found
        return parts

    def rest(self) -> list[AnswerPart]:
        held, self._held = self._held, ""
        calls = self._calls(held)
        if calls:
            return calls
        # Space between calls is not for the user.
        return [held] if held and not (self._called and held.isspace()) else []

    def _at_start(self) -> list[AnswerPart] | None:
        """Before the first character: is all of it a call?"""
        begun = self._held.lstrip()
        if begun.startswith(_WHOLE_CALL_PREFIXES):
            self._state = self._to_the_end
        elif not any(start.startswith(begun) for start in _WHOLE_CALL_PREFIXES):
            self._state = self._in_text
        else:
            return None
        return []

    def _to_the_end(self) -> list[AnswerPart] | None:
        return None

    def _in_text(self) -> list[AnswerPart] | None:
        """Text is let go up to where a call may start, without the space before that."""
        before, tag, _ = self._held.partition(_OPEN)
        sure = before if tag else before[: len(before) - _partial_tag_length(before)]
        text = sure.rstrip()
        self._held = self._held[len(text) :]
        if tag:
            self._state = self._in_call
        return [text] if text else [] if tag else None

    def _in_call(self) -> list[AnswerPart] | None:
        end = self._held.find(_CLOSE)
        while end >= 0 and _ends_inside_a_string(self._held[:end]):
            end = self._held.find(_CLOSE, end + 1)
        if end < 0:
            return None
        block, self._held = self._held[: end + len(_CLOSE)], self._held[end + len(_CLOSE) :]
        self._state = self._in_text
        return self._calls(block) or [block]

    def _after_the_call(self) -> list[AnswerPart] | None:
        self._held = ""
        return None

    def _calls(self, text: str) -> list[AnswerPart]:
        found = self._toolset.check_calls(parse_calls(text))
        if found is None:
            return []
        self._called = True
        if not self._toolset.parallel:
            self._state = self._after_the_call
        return list(found)


def _partial_tag_length(text: str) -> int:
    """How much of the end of `text` may be the start of a tag."""
    longest = min(len(text), len(_OPEN) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(_OPEN[:n])), 0)


def _ends_inside_a_string(call: str) -> bool:
    """Whether the JSON after the tag is cut between quotes, where the closing tag is no tag."""
    try:
        _DECODER.raw_decode(call.partition(_OPEN)[2].lstrip())
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    return False
