"""Write tool calls and their results as messages, in the form of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgesdk.errors import RequestError
from edgesdk.tools.calls import ToolCall

Message = dict[str, Any]


def call_message(content: str, calls: Sequence[ToolCall], reasoning: str = "") -> Message:
    """Write the assistant's message that makes `calls`, after the words `content`.

    Args:
        reasoning: what came before them.
    """
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if not calls:
        return message
    written = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]
    return {**message, "tool_calls": written}


def result_message(call: ToolCall, result: str) -> Message:
    """Write the message that tells the model the result of a call."""
    return {"role": "tool", "name": call.name, "tool_call_id": call.id, "content": result}


def calls_of(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Read the calls of a message; arguments may be a JSON text, as OpenAI's clients send them.

    Raises:
        RequestError: they are not calls.
    """
    calls = message.get("tool_calls")
    return tuple(_call(call) for call in calls) if isinstance(calls, list | tuple) else ()


def used_ids(messages: Sequence[Message]) -> set[str]:
    """The ids of all calls of a conversation."""
    return {call.id for message in messages for call in calls_of(message)}


def unanswered_calls(messages: Sequence[Message]) -> tuple[ToolCall, ...]:
    """The calls at the end of a conversation whose results are still to come."""
    called, results = _last_calls(messages)
    answered = {result.get("tool_call_id") for result in results}
    return tuple(call for call in called if call.id not in answered)


def add_result(messages: Sequence[Message], call: ToolCall, result: str) -> list[Message]:
    """The conversation with the result of one of its `unanswered_calls` calls, in the calls'
    order.
    """
    called, results = _last_calls(messages)
    places = {each.id: place for place, each in enumerate(called)}
    all_results = [*results, result_message(call, result)]
    all_results.sort(key=lambda message: places.get(str(message.get("tool_call_id")), len(places)))
    return [*messages[: len(messages) - len(results)], *all_results]


def open_turn_start(messages: Sequence[Message]) -> int:
    """Find where the open turn begins: at the last message of the user."""
    starts = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return starts[-1] if starts else 0


def _last_calls(messages: Sequence[Message]) -> tuple[tuple[ToolCall, ...], list[Message]]:
    place = len(messages)
    while place and messages[place - 1]["role"] == "tool":
        place -= 1
    called = calls_of(messages[place - 1]) if place else ()
    return called, list(messages[place:])


def _call(call: Any) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str):
        raise RequestError(f"{call!r} is no tool call.", hint="Give it a function with a name.")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping):
        raise RequestError(f"The arguments of the call of {name!r} are not a JSON object.")
    return ToolCall(name, dict(arguments), id=str(call.get("id") or ""))
