"""The loop of a model and its tools: ask, run what it calls, tell it the results, ask again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import ToolRoundsExceeded
from edgesdk.receipt import Reply
from edgesdk.tools.calls import ToolCall, calls_in
from edgesdk.tools.dialect import Dialect
from edgesdk.tools.function import Tool


@dataclass(frozen=True)
class ToolRun:
    """A call and what became of it.

    Attributes:
        result: the text that the model was told; for a failed call, why it failed.
    """

    call: ToolCall
    result: str
    failed: bool


@dataclass(frozen=True)
class Acted:
    """The end of a loop.

    Attributes:
        reply: the answer that calls no tool.
        runs: the calls before it, in order.
        messages: all that was said, from the question to the answer.
    """

    reply: Reply
    runs: tuple[ToolRun, ...]
    messages: tuple[dict[str, Any], ...]


def act(
    ask: Callable[[list[dict[str, Any]]], Reply],
    question: list[dict[str, Any]],
    tools: Mapping[str, Tool],
    dialect: Dialect,
    *,
    max_rounds: int,
) -> Acted:
    """Ask until an answer calls no tool.

    Args:
        ask: gives the answer to messages; each time it gets those of the time before, and more.
        max_rounds: most answers that may call tools.

    Raises:
        ToolRoundsExceeded: one answer more calls tools; those calls were not run.
    """
    runs: list[ToolRun] = []
    messages = list(question)
    reply = ask(messages)
    for _ in range(max_rounds):
        calls = calls_in(reply.text)
        if not calls:
            break
        done = [_run(call, tools) for call in calls]
        runs += done
        messages.append(dialect.answer(reply.text, calls))
        messages += dialect.told([(run.call, run.result) for run in done])
        reply = ask(messages)
    if calls_in(reply.text):
        raise ToolRoundsExceeded(
            f"The model still calls tools after {max_rounds} rounds.",
            hint="Raise max_rounds, or say in the prompt when the work is done.",
        )
    messages.append({"role": "assistant", "content": reply.text})
    return Acted(reply, tuple(runs), tuple(messages))


def _run(call: ToolCall, tools: Mapping[str, Tool]) -> ToolRun:
    from pydantic import ValidationError

    if call.problem is not None:
        return ToolRun(call, f"Error: {call.problem}", failed=True)
    tool = tools.get(call.name)
    if tool is None:
        known = ", ".join(tools)
        return ToolRun(call, f"Error: there is no tool {call.name!r}; use {known}.", failed=True)
    try:
        result = _text(tool.run(call.arguments))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()]
        return ToolRun(call, f"Error: invalid arguments: {'; '.join(faults)}", failed=True)
    except Exception as error:
        # Whatever a tool raises is news for the model, which may try something else.
        return ToolRun(call, f"Error: {type(error).__name__}: {error}", failed=True)
    return ToolRun(call, result, failed=False)


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    from pydantic_core import to_json

    return to_json(result, fallback=str).decode()
