"""The loop of a model and its tools: ask, run what it calls, tell it the results, ask again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from edgesdk.errors import DeadlineExceeded, InvalidOption, ToolRoundsExceeded
from edgesdk.receipt import Reply
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.function import Tool
from edgesdk.tools.messages import Message, result_message
from edgesdk.tools.running import ToolRun, run_calls, run_calls_async


class Answered(Protocol):
    """What a loop needs of an answer."""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """See `Reply`."""

    @property
    def message(self) -> dict[str, Any]:
        """See `Reply`."""


_Reply = TypeVar("_Reply", bound=Answered, default=Reply)


@dataclass(frozen=True)
class Acted(Generic[_Reply]):
    """The end of a loop.

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


class Acting(Generic[_Reply]):
    """The state of one loop; `act` and `act_async` turn it.

    Args:
        news: the question; calls and results are added to it.
        max_rounds: most answers that may call tools.
        deadline: seconds from now that all of it may take; None for no limit.
    """

    def __init__(self, news: list[Message], *, max_rounds: int, deadline: float | None) -> None:
        self.news = news
        self._max_rounds = max_rounds
        self._ends = None if deadline is None else perf_counter() + deadline
        self._replies: list[_Reply] = []
        self._runs: list[ToolRun] = []

    def remaining(self) -> float | None:
        """Seconds that are left; None for no limit.

        Raises:
            DeadlineExceeded: none are.
        """
        if self._ends is None:
            return None
        left = self._ends - perf_counter()
        if left <= 0:
            raise DeadlineExceeded(
                "The deadline passed before the work was done.",
                hint="Allow more time, or ask for less.",
            )
        return left

    def take(self, reply: _Reply) -> tuple[ToolCall, ...]:
        """Note an answer; its calls are to be run, and there are none where the loop has ended.

        Raises:
            ToolRoundsExceeded: it is one answer too many that calls tools.
        """
        self._replies.append(reply)
        self.news.append(reply.message)
        if reply.tool_calls and len(self._replies) > self._max_rounds:
            raise ToolRoundsExceeded(
                f"The model still calls tools after {self._max_rounds} rounds.",
                hint="Raise max_rounds, or say in the prompt when the work is done.",
            )
        return reply.tool_calls

    def tell(self, runs: list[ToolRun]) -> None:
        """Add what calls gave."""
        self._runs += runs
        self.news += [result_message(run.call, run.result) for run in runs]

    def acted(self) -> Acted[_Reply]:
        """The end."""
        return Acted(tuple(self._replies), tuple(self._runs), tuple(self.news))


def act(
    acting: Acting[_Reply], ask: Callable[[float | None], _Reply], tools: Mapping[str, Tool]
) -> Acted[_Reply]:
    """Ask until an answer calls no tool.

    Args:
        ask: gives the answer to `acting.news` within so many seconds.

    Raises:
        ToolRoundsExceeded, DeadlineExceeded: see `Acting`.
        InvalidOption: a tool is asynchronous.
    """
    if any(tool.is_async for tool in tools.values()):
        raise InvalidOption(
            "A tool is asynchronous.", hint="Use 'await chat.aact(...)', or a plain 'def'."
        )
    while calls := acting.take(ask(acting.remaining())):
        acting.tell(run_calls(calls, tools, seconds=acting.remaining()))
    return acting.acted()


async def act_async(
    acting: Acting[_Reply],
    ask: Callable[[float | None], Awaitable[_Reply]],
    tools: Mapping[str, Tool],
) -> Acted[_Reply]:
    """`act` for asyncio."""
    while calls := acting.take(await ask(acting.remaining())):
        acting.tell(await run_calls_async(calls, tools, seconds=acting.remaining()))
    return acting.acted()
