"""Splits an answer into text for the user and calls of tools, as it comes.

Text counts as a call when the call is complete and its arguments fit. Until then it is held back;
where that never comes about, it is text for the user after all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol, TypeAlias

from edgesdk.server.callable_tools import CallableTools
from edgesdk.tools.calls import CALL_START, ToolCall, parse_calls

AnswerPart: TypeAlias = str | ToolCall

_DECODER = json.JSONDecoder()
# Each way that a call in the middle of an answer may begin.
_STARTS = (
    *("<tool_call>", "<tool_calls>", "<|tool_call|>", "<|tool_calls|>", "<function_call>"),
    *("<function_calls>", "<functioncall>", "<function=", "[TOOL_CALLS]"),
)
# What an answer starts with that is a call as a whole, as Llama and models without tags have it.
_WHOLE_CALL_PREFIXES = ("{", "[", "<|python_tag|>", "```json", "```\n")


class AnswerReader(Protocol):
    """Takes an answer's text piece by piece."""

    def feed(self, text: str) -> list[AnswerPart]:
        """What is certain after this piece; no text in it is empty."""

    def flush(self) -> list[AnswerPart]:
        """What was held back, at the answer's end."""


class PlainTextReader:
    """Implements `AnswerReader` where no tool may be called."""

    def feed(self, text: str) -> list[AnswerPart]:
        return [text] if text else []

    def flush(self) -> list[AnswerPart]:
        return []


class ToolCallReader:
    """Implements `AnswerReader` where tools may be called."""

    def __init__(self, callable_tools: CallableTools) -> None:
        self._tools = callable_tools
        self._held = ""
        self._close = ""
        # Mistral's calls begin with a name, where their mark has no text.
        self._whole_call = (*_WHOLE_CALL_PREFIXES, *(f"{name}{{" for name in callable_tools.checks))
        self._state: Callable[[], list[AnswerPart] | None] = self._at_start
        self._found_call = False

    def feed(self, text: str) -> list[AnswerPart]:
        self._held += text
        parts: list[AnswerPart] = []
        while (found := self._state()) is not None:
            parts += found
        return parts

    def flush(self) -> list[AnswerPart]:
        held, self._held = self._held, ""
        calls = self._read_calls(held)
        if calls:
            return calls
        # Space between calls is not for the user.
        return [held] if held and not (self._found_call and held.isspace()) else []

    def _at_start(self) -> list[AnswerPart] | None:
        """Before the first character: tell whether all of the answer may be a call."""
        beginning = self._held.lstrip()
        if beginning.startswith(self._whole_call):
            self._state = self._until_the_end
        elif not any(start.startswith(beginning) for start in self._whole_call):
            self._state = self._in_text
        else:
            return None
        return []

    def _until_the_end(self) -> list[AnswerPart] | None:
        return None

    def _in_text(self) -> list[AnswerPart] | None:
        """Let text go up to where a call may start, without the space before that."""
        found = CALL_START.search(self._held)
        unclosed = self._held.find("[TOOL_CALLS]")
        starts = [place for place in (found.start() if found else -1, unclosed) if place >= 0]
        certain = self._held[: min(starts)] if starts else _without_partial_start(self._held)
        text = certain.rstrip()
        self._held = self._held[len(text) :]
        if found and found.start() == min(starts):
            bar, tag = found[1], found[2]
            self._close = "</function>" if tag is None else f"<{bar}/{tag}{bar}>"
            self._state = self._in_call
        elif starts:
            self._state = self._until_the_end
        return [text] if text else [] if starts else None

    def _in_call(self) -> list[AnswerPart] | None:
        end = self._held.find(self._close)
        while end >= 0 and _ends_inside_a_string(self._held[:end]):
            end = self._held.find(self._close, end + 1)
        if end < 0:
            return None
        end += len(self._close)
        block, self._held = self._held[:end], self._held[end:]
        self._state = self._in_text
        return self._read_calls(block) or [block]

    def _drop_the_rest(self) -> list[AnswerPart] | None:
        self._held = ""
        return None

    def _read_calls(self, text: str) -> list[AnswerPart]:
        found = self._tools.check_calls(parse_calls(text, self._tools.specs))
        if found is None:
            return []
        self._found_call = True
        if not self._tools.parallel:
            self._state = self._drop_the_rest
        return list(found)


def _without_partial_start(text: str) -> str:
    """A text without what may be the beginning of a call's start at its end."""
    cut = max(
        (n for start in _STARTS for n in range(1, len(start)) if text.endswith(start[:n])),
        default=0,
    )
    return text[: len(text) - cut]


def _ends_inside_a_string(call: str) -> bool:
    """Whether the JSON after the tag is cut between quotes, where the closing tag is no tag."""
    try:
        _DECODER.raw_decode(call[call.index(">") + 1 :].lstrip())
    except json.JSONDecodeError as error:
        return error.msg.startswith("Unterminated string")
    except RecursionError:
        return False
    return False
