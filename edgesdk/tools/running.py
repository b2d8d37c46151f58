"""Calls that run: several of one answer at once, and whatever they raise becomes a text."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from edgesdk.errors import DeadlineExceeded
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.function import Tool

# Calls of one answer that run at once, each in a thread of its own.
MOST_THREADS = 8


@dataclass(frozen=True)
class ToolRun:
    """A call and what became of it.

    Attributes:
        result: the text that the model was told; for a failed call, why it failed.
    """

    call: ToolCall
    result: str
    failed: bool


def run_calls(
    calls: Sequence[ToolCall], tools: Mapping[str, Tool], *, seconds: float | None
) -> list[ToolRun]:
    """Run calls, several at once in threads; the results have the order of the calls.

    A single call runs in the caller's thread. Threads see the caller's context variables.

    Args:
        seconds: how long to wait for threads; None for as long as they take. Python cannot end
            a thread: what still runs then, or when Ctrl-C comes, runs on, and nobody hears of it.

    Raises:
        DeadlineExceeded: the time was over before all had ended.
    """
    if len(calls) == 1:
        return [_run(calls[0], tools)]
    pool = ThreadPoolExecutor(min(len(calls), MOST_THREADS), thread_name_prefix="edgesdk-tool")
    try:
        running: list[Future[ToolRun]] = [
            pool.submit(copy_context().run, _run, call, tools) for call in calls
        ]
        if wait(running, seconds).not_done:
            raise _too_slow()
        return [future.result() for future in running]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


async def run_calls_async(
    calls: Sequence[ToolCall], tools: Mapping[str, Tool], *, seconds: float | None
) -> list[ToolRun]:
    """`run_calls` for asyncio: `async def` tools run in the event loop, others in threads.

    When the task is cancelled, so are the `async def` tools.
    """
    room = asyncio.Semaphore(MOST_THREADS)

    async def run(call: ToolCall) -> ToolRun:
        tool = tools.get(call.name)
        if tool is not None and tool.is_async:
            return await _run_async(call, tool)
        async with room:
            return await asyncio.to_thread(_run, call, tools)

    try:
        return await asyncio.wait_for(asyncio.gather(*map(run, calls)), seconds)
    except asyncio.TimeoutError:
        raise _too_slow() from None


def _run(call: ToolCall, tools: Mapping[str, Tool]) -> ToolRun:
    if call.problem is not None:
        return _failed(call, call.problem)
    try:
        return ToolRun(call, text_of(tools[call.name].run(call.arguments)), failed=False)
    except Exception as error:
        return _raised(call, error)


async def _run_async(call: ToolCall, tool: Tool) -> ToolRun:
    if call.problem is not None:
        return _failed(call, call.problem)
    try:
        return ToolRun(call, text_of(await tool.run(call.arguments)), failed=False)
    except Exception as error:
        return _raised(call, error)


def _raised(call: ToolCall, error: Exception) -> ToolRun:
    # Whatever a tool raises is news for the model, which may try something else.
    return _failed(call, f"{type(error).__name__}: {error}")


def _failed(call: ToolCall, why: str) -> ToolRun:
    return ToolRun(call, f"Error: {why}", failed=True)


def text_of(result: Any) -> str:
    """What the model is told of a result: a text as it is, anything else as JSON."""
    if isinstance(result, str):
        return result
    from pydantic_core import to_json

    return to_json(result, fallback=str).decode()


def _too_slow() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The deadline passed while tools ran.", hint="Allow more time, or make the tools faster."
    )
