"""Run the loop of a model and its tools: ask, run the calls, add the results, ask again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypeVar

from edgesdk.errors import DeadlineExceeded, InvalidOption, ToolRoundsExceeded
from edgesdk.system.cancellation import CancellationToken
from edgesdk.tools.call_messages import Message, result_message
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.functions import Tool

if TYPE_CHECKING:
    from edgesdk.reply import Reply


class HasToolCalls(Protocol):
    """An answer that may call tools."""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """See `Reply`."""

    @property
    def message(self) -> dict[str, Any]:
        """See `Reply`."""


_Reply = TypeVar("_Reply", bound=HasToolCalls, default="Reply")


@dataclass(frozen=True)
class ActResult(Generic[_Reply]):
    """What a tool loop came to.

    Attributes:
        replies: all answers, each with its receipt; the last one calls no tool.
        runs: the calls before it, in order.
        messages: all that was said, from the question to the answer.
    """

    replies: tuple[_Reply, ...]
    runs: tuple[ToolRun, ...]
    messages: tuple[dict[str, Any], ...]

    @property
    def reply(self) -> _Reply:
        """The answer that calls no tool."""
        return self.replies[-1]


class ToolLoop(Generic[_Reply]):
    """The state of one loop; `act` and `act_async` run it.

    Args:
        messages: the question; calls and results are added to it.
        max_rounds: how many answers may call tools.
        deadline: seconds from now that all of it may take; None for no limit.
    """

    def __init__(self, messages: list[Message], *, max_rounds: int, deadline: float | None) -> None:
        self.messages = messages
        self._max_rounds = max_rounds
        self._clock = CancellationToken(deadline)
        self._replies: list[_Reply] = []
        self._runs: list[ToolRun] = []

    def remaining(self) -> float | None:
        """Seconds that are left; None for no limit.

        Raises:
            DeadlineExceeded: none are.
        """
        if self._clock.expired:
            raise DeadlineExceeded(
                "The deadline passed before the work was done.",
                hint="Allow more time, or ask for less.",
            )
        return self._clock.timeout

    def add_reply(self, reply: _Reply) -> tuple[ToolCall, ...]:
        """Add an answer, and give the calls to run next; none where the loop has ended.

        Raises:
            ToolRoundsExceeded: it is one answer too many that calls tools.
        """
        self._replies.append(reply)
        self.messages.append(reply.message)
        if reply.tool_calls and len(self._replies) > self._max_rounds:
            raise ToolRoundsExceeded(
                f"The model still calls tools after {self._max_rounds} rounds.",
                hint="Raise max_rounds, or say in the prompt when the work is done.",
            )
        return reply.tool_calls

    def add_results(self, runs: list[ToolRun]) -> None:
        """Add the results of calls."""
        self._runs += runs
        self.messages += [result_message(run.call, run.result) for run in runs]

    def result(self) -> ActResult[_Reply]:
        """The result of the loop."""
        return ActResult(tuple(self._replies), tuple(self._runs), tuple(self.messages))


def act(
    loop: ToolLoop[_Reply], ask: Callable[[float | None], _Reply], tools: Mapping[str, Tool]
) -> ActResult[_Reply]:
    """Run a loop: ask until an answer calls no tool.

    Args:
        ask: gives the answer to `loop.messages` within so many seconds.

    Raises:
        ToolRoundsExceeded, DeadlineExceeded: see `ToolLoop`.
        InvalidOption: a tool is asynchronous.
    """
    if any(tool.is_async for tool in tools.values()):
        raise InvalidOption(
            "A tool is asynchronous.", hint="Use 'await chat.aact(...)', or a plain 'def'."
        )
    while calls := loop.add_reply(ask(loop.remaining())):
        loop.add_results(run_calls(calls, tools, seconds=loop.remaining()))
    return loop.result()


async def act_async(
    loop: ToolLoop[_Reply],
    ask: Callable[[float | None], Awaitable[_Reply]],
    tools: Mapping[str, Tool],
) -> ActResult[_Reply]:
    """`act` for asyncio."""
    while calls := loop.add_reply(await ask(loop.remaining())):
        loop.add_results(await run_calls_async(calls, tools, seconds=loop.remaining()))
    return loop.result()


# Calls of one answer that run at once, each in a thread of its own.
MAX_THREADS = 8


@dataclass(frozen=True)
class ToolRun:
    """A call and its result.

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
    pool = ThreadPoolExecutor(min(len(calls), MAX_THREADS), thread_name_prefix="edgesdk-tool")
    try:
        running: list[Future[ToolRun]] = [
            pool.submit(copy_context().run, _run, call, tools) for call in calls
        ]
        if wait(running, seconds).not_done:
            raise _deadline_passed()
        return [future.result() for future in running]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


async def run_calls_async(
    calls: Sequence[ToolCall], tools: Mapping[str, Tool], *, seconds: float | None
) -> list[ToolRun]:
    """`run_calls` for asyncio: `async def` tools run in the event loop, others in threads.

    When the task is cancelled, so are the `async def` tools.
    """
    room = asyncio.Semaphore(MAX_THREADS)

    async def run(call: ToolCall) -> ToolRun:
        tool = tools.get(call.name)
        if tool is not None and tool.is_async:
            return await _run_async(call, tool)
        async with room:
            return await asyncio.to_thread(_run, call, tools)

    try:
        return await asyncio.wait_for(asyncio.gather(*map(run, calls)), seconds)
    except asyncio.TimeoutError:
        raise _deadline_passed() from None


def _run(call: ToolCall, tools: Mapping[str, Tool]) -> ToolRun:
    if call.problem is not None:
        return _failed(call, call.problem)
    try:
        return ToolRun(call, result_text(tools[call.name].run(call.arguments)), failed=False)
    except Exception as error:
        return _raised(call, error)


async def _run_async(call: ToolCall, tool: Tool) -> ToolRun:
    if call.problem is not None:
        return _failed(call, call.problem)
    try:
        return ToolRun(call, result_text(await tool.run(call.arguments)), failed=False)
    except Exception as error:
        return _raised(call, error)


def _raised(call: ToolCall, error: Exception) -> ToolRun:
    # Whatever a tool raises is news for the model, which may try something else.
    return _failed(call, f"{type(error).__name__}: {error}")


def _failed(call: ToolCall, why: str) -> ToolRun:
    return ToolRun(call, f"Error: {why}", failed=True)


def result_text(result: Any) -> str:
    """Write a result for the model: a text as it is, anything else as JSON."""
    if isinstance(result, str):
        return result
    from pydantic_core import to_json

    return to_json(result, fallback=str).decode()


def _deadline_passed() -> DeadlineExceeded:
    return DeadlineExceeded(
        "The deadline passed while tools ran.", hint="Allow more time, or make the tools faster."
    )
