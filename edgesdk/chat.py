"""A conversation that keeps its KV cache from turn to turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from edgesdk.engines.base import DecodeState
from edgesdk.generation.loop import Generation
from edgesdk.generation.streaming import read_all, read_all_async
from edgesdk.options import OptionsKwargs
from edgesdk.overflow import (
    Overflow,
    OverflowingConversation,
    OverflowPolicy,
    SummarizedAnswer,
    checked_policy,
    drop_oldest,
    low_watermark,
    prompt_limit,
)
from edgesdk.reply import AsyncReplyStream, Reply, ReplyStream
from edgesdk.request import Request
from edgesdk.runtime import Runtime
from edgesdk.session import Session, Turn, save_chat
from edgesdk.tools.call_messages import Message
from edgesdk.tools.tool_set import RequestKwargs

if TYPE_CHECKING:
    from edgesdk.tools.tool_loop import ActResult


class Chat(Session[Turn, ReplyStream, Reply]):
    """A conversation; `Model.chat` makes one. It raises what `Model` raises.

    Each turn renders the whole conversation and computes only what the KV cache does not hold:
    the receipt's `cached_tokens` says how much it held.

    A turn joins the history when its answer ends by itself, at `max_tokens`, or at its deadline.
    One that was cancelled, left before its end or failed, or that ended in its reasoning, leaves
    the history as it was.

    One turn at a time: asking while an answer is under way raises `RequestError`.

    Args:
        overflow: see `Model.chat`.
        turns: the conversation so far, the system message left out.
        state: has some or all of it in its KV cache; the chat's own from now on.

    Raises:
        InvalidOption: there is no such overflow policy.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        system: str | None = None,
        overflow: OverflowPolicy = "error",
        turns: Iterable[Message] = (),
        state: DecodeState | None = None,
    ) -> None:
        super().__init__(system=system, turns=turns)
        self._runtime = runtime
        self._overflow = checked_policy(overflow)
        self._state = state

    def respond(self, prompt: str | None = None, **options: Unpack[RequestKwargs]) -> Reply:
        """Answer the user's next message.

        Args:
            prompt: the message; None to go on after the results of tool calls (see
                `add_tool_result`).
            options: see `RequestKwargs`.
        """
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: str | None = None, **options: Unpack[RequestKwargs]) -> ReplyStream:
        """Answer the user's next message piece by piece; see `respond`.

        Raises:
            RequestError: the answer before it is still under way, or a tool call has no result.
        """
        return self._start(prompt, options)

    async def arespond(self, prompt: str | None = None, **options: Unpack[RequestKwargs]) -> Reply:
        """`respond` for asyncio; cancelling the task stops the decoding."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(
        self, prompt: str | None = None, **options: Unpack[RequestKwargs]
    ) -> AsyncReplyStream:
        """`stream` for asyncio; cancelling the task stops the decoding."""
        return AsyncReplyStream(self.stream(prompt, **options))

    def act(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        *,
        max_rounds: int = 8,
        **options: Unpack[OptionsKwargs],
    ) -> ActResult:
        """Answer the user's next message with the help of Python functions.

        The model may call them, several in one answer, which then run at once, in threads; it is
        told what they return, or why a call failed, and answers again. Arguments are checked
        against the type hints before a function runs. All answers and results join the history,
        unless this raises: then the history is as it was.

        Args:
            prompt: as for `respond`.
            tools: functions with type hints; docstrings say to the model what they are for.
            max_rounds: most answers that may call tools.
            options: hold for each answer by itself, but for `deadline`: it is of all of it.

        Raises:
            ToolRoundsExceeded: the model still calls tools after `max_rounds` rounds.
            DeadlineExceeded: the deadline passed before an answer began, or while tools ran.
            InvalidOption: a function cannot be a tool, or an option is unknown or out of range.
            RequestError: an answer is under way, or a tool call has no result.
        """
        return self._run_tools(prompt, tools, max_rounds, options)

    async def aact(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        *,
        max_rounds: int = 8,
        **options: Unpack[OptionsKwargs],
    ) -> ActResult:
        """`act` for asyncio. Tools may be `async def`: they run in the event loop, others in
        threads; cancelling the task stops the decoding and cancels them."""
        return await self._run_tools_async(prompt, tools, max_rounds, options)

    def fork(self) -> Chat:
        """A chat that goes on from here by itself; what is in the KV cache is not computed again.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            twin = None if self._state is None else self._state.fork()
            return Chat(
                self._runtime,
                system=self.system,
                overflow=self._overflow,
                turns=self._turns,
                state=twin,
            )

    def save(self, path: str | Path) -> None:
        """Write the conversation and its KV cache to a file for `Model.restore`.

        The file is written beside its place and then put there, whole.

        Raises:
            RequestError: an answer is under way, or `path` cannot be written.
        """
        with self._answering.held():
            # What the CPU holds of it after a warm start, the device could not restore.
            self._move_over()
            save_chat(Path(path), self._held_state(), system=self.system, turns=self._turns)

    def _make_turn(
        self,
        history: list[Message],
        new_messages: list[Message],
        kwargs: Mapping[str, Any],
        started: float,
    ) -> Turn:
        self._move_over()
        messages = [*self._system_messages, *history, *new_messages]
        return Turn(history, new_messages, self._runtime.request(messages, kwargs, started=started))

    def _answer(
        self, turn: Turn, request: Request, on_end: Callable[[Reply | None], None]
    ) -> ReplyStream:
        request = request.replaced(
            messages=[*self._system_messages, *turn.history, *turn.new_messages]
        )
        limit = prompt_limit(self._runtime.engine.info.context_length, request.options.max_tokens)

        def ended(reply: Reply | None) -> None:
            if reply is None:
                # After an error nothing is known of the cache for sure.
                self._free()
            on_end(reply)

        if self._overflow != "error" and turn.history and len(request.tokens) > limit:
            return self._shortened(turn, request, limit, ended)
        shared = 0 if turn.history else self._runtime.shared_tokens(request)
        return self._runtime.answer(self._held_state(), request, on_end=ended, shared=shared)

    def _shortened(
        self,
        turn: Turn,
        request: Request,
        limit: int,
        on_end: Callable[[Reply | None], None],
    ) -> ReplyStream:
        """Answer with as many of the latest turns as fit."""

        def with_history(history: list[Message]) -> Request:
            return request.replaced(messages=[*self._system_messages, *history, *turn.new_messages])

        short = drop_oldest(
            turn.history,
            lambda history: len(with_history(history).tokens),
            low_watermark(limit),
        )
        tokens_before = len(request.tokens)
        if self._overflow == "summarize":
            conversation = OverflowingConversation(
                self._system_messages, short, turn.new_messages, tokens_before
            )
            return self._summarized(turn, request, conversation, on_end)
        request = with_history(short.turns)

        def ended(reply: Reply | None) -> None:
            turn.history = short.turns
            on_end(reply)

        overflow = Overflow(self._overflow, len(short.dropped), tokens_before, len(request.tokens))
        return self._runtime.answer(self._held_state(), request, on_end=ended, overflow=overflow)

    def _summarized(
        self,
        turn: Turn,
        request: Request,
        conversation: OverflowingConversation,
        on_end: Callable[[Reply | None], None],
    ) -> ReplyStream:
        runtime, state = self._runtime, self._held_state()
        constraint = runtime.constraint_for(request.answer_format)

        def begin(part: Request) -> Generation:
            # The summary is free text; only the answer has a format.
            held = constraint if part.options is request.options else None
            return runtime.generate(state, part, constraint=held)

        summarized = SummarizedAnswer(
            conversation,
            request,
            begin=begin,
            context_length=runtime.engine.info.context_length,
        )

        def ended(reply: Reply | None) -> None:
            turn.history = summarized.turns
            on_end(reply)

        return runtime.stream(
            summarized,
            request,
            constraint,
            on_end=ended,
            overflow=lambda: summarized.overflow,
        )

    def _move_over(self) -> None:
        """Go on with what took the runtime's place. It computes the conversation anew: so its
        answers are those that it would have given from the start."""
        latest = self._runtime.latest()
        if latest is not self._runtime:
            self._free()
            self._runtime = latest

    def _ends_turn(self, reply: Reply) -> bool:
        if reply.finish_reason == "cancelled" or reply.receipt.ended_in_reasoning:
            return False
        return bool(reply.tokens) or reply.finish_reason == "stop"

    def _held_state(self) -> DecodeState:
        if self._state is None:
            self._state = self._runtime.engine.new_state()
        return self._state

    def _free(self) -> None:
        if self._state is not None:
            self._state.close()
            self._state = None
