"""Read the calls of an answer that ended before its last call did."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgesdk.tools.call_syntax import CallSyntax
from edgesdk.tools.calls import ToolCall, parse_calls

_CALL_END = re.compile(r"[})>\]]")


def whole_calls(
    text: str, specs: Sequence[Mapping[str, Any]] = (), syntax: CallSyntax | None = None
) -> tuple[ToolCall, ...]:
    """The calls of an answer, as far as they are whole; arguments as for `parse_calls`.

    What was begun is left out: the rest of a list, or a call whose arguments do not end.
    """
    ends = [found.end() for found in _CALL_END.finditer(text)]
    for end in reversed([*ends, len(text)]):
        for closing in ("", "]"):
            calls = parse_calls(text[:end] + closing, specs, syntax)
            if calls and not any(call.problem for call in calls):
                return calls
    return ()


def distinct_calls(calls: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
    """Calls without those that an earlier one says already, whatever their ids."""
    kept: list[ToolCall] = []
    for call in calls:
        if (call.name, call.arguments) not in [(each.name, each.arguments) for each in kept]:
            kept.append(call)
    return tuple(kept)


def repeats_itself(
    text: str, specs: Sequence[Mapping[str, Any]] = (), syntax: CallSyntax | None = None
) -> bool:
    """Whether the latest call of an answer so far has just ended, and is an earlier one again.

    A small model that must call may repeat a call until its tokens run out.
    """
    if _CALL_END.fullmatch(text[-1:]) is None:
        return False
    calls = whole_calls(text, specs, syntax)
    return len(distinct_calls(calls)) < len(calls)
