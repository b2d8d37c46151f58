"""A conversation that keeps its KV cache from turn to turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from edgesdk.engines.base import DecodeState
from edgesdk.engines.base import DecodeState as EngineSequence
from edgesdk.errors import InvalidOption
from edgesdk.generation.loop import Generation
from edgesdk.generation.streaming import read_all, read_all_async
from edgesdk.options import Options, OptionsKwargs
from edgesdk.overflow import (
    Overflow,
    OverflowingConversation,
    OverflowPolicy,
    ShortenedHistory,
    SummarizedAnswer,
    checked_policy,
    drop_oldest,
    low_watermark,
    prompt_limit,
)
from edgesdk.receipt import Reply
from edgesdk.reply import AsyncReplyStream, ReplyStream
from edgesdk.runtime import Runtime
from edgesdk.session import AnswerLock, new_messages_of, save_chat, with_tool_result
from edgesdk.structured.output_format import GenerationRequest
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.closing import Closeable
from edgesdk.tools.call_messages import open_turn_start, unanswered_calls, used_ids
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.tool_set import OfferedTools, RequestKwargs, parse_tool_kwargs

if TYPE_CHECKING:
    from edgesdk.tools.functions import Tool
    from edgesdk.tools.tool_loop import ActResult, ToolLoop


class Chat(Closeable):
    """A conversation; `Model.chat` makes one. It raises what `Model` raises.

    Each turn renders the whole conversation and computes only what the KV cache does not hold:
    the receipt's `cached_tokens` says how much it held.

    A turn joins the history when its answer ends by itself, at `max_tokens`, or at its deadline.
    One that was cancelled, left before its end or failed leaves the history as it was.

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
        turns: Iterable[dict[str, Any]] = (),
        state: DecodeState | None = None,
    ) -> None:
        self.system = system
        self._runtime = runtime
        self._overflow = checked_policy(overflow)
        self._turns = [dict(message) for message in turns]
        self._state = state
        self._answering = AnswerLock()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, the system message first; a copy."""
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*told, *(dict(message) for message in self._turns)]

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
        started = perf_counter()
        self._answering.begin()
        try:
            turn = self._turn(prompt)
            asked, _ = self._asked(options, turn)
            return self._answer(turn, asked, started, self._joins(turn))
        except BaseException:
            self._answering.end()
            raise

    async def arespond(self, prompt: str | None = None, **options: Unpack[RequestKwargs]) -> Reply:
        """`respond` for asyncio; cancelling the task stops the decoding."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(
        self, prompt: str | None = None, **options: Unpack[RequestKwargs]
    ) -> AsyncReplyStream:
        """`stream` for asyncio; cancelling the task stops the decoding."""
        return AsyncReplyStream(self.stream(prompt, **options))

    @property
    def pending_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the last answer whose results are still to be given."""
        return unanswered_calls(self._turns)

    def add_tool_result(self, call: ToolCall, result: Any) -> None:
        """Tell the model what one of its calls gave; when all have a result, `respond()` goes on.

        Args:
            call: one of `pending_calls`.
            result: a text as it is, anything else as JSON.

        Raises:
            RequestError: an answer is under way, or no result of that call is waited for.
        """
        with self._answering.held():
            self._turns = with_tool_result(self._turns, call, result)

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
        from edgesdk.tools.tool_loop import act

        with self._answering.held():
            turn, loop, functions, ask = self._acting(prompt, tools, max_rounds, options)
            acted = act(loop, lambda seconds: read_all(ask(seconds)), functions)
            self._turns = [*turn.history, *acted.messages]
        return acted

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
        from edgesdk.tools.tool_loop import act_async

        with self._answering.held():
            turn, loop, functions, ask = self._acting(prompt, tools, max_rounds, options)

            async def asked(seconds: float | None) -> Reply:
                return await read_all_async(AsyncReplyStream(ask(seconds)))

            acted = await act_async(loop, asked, functions)
            self._turns = [*turn.history, *acted.messages]
        return acted

    def reset(self) -> None:
        """Forget the conversation; `system` stays.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            self._turns.clear()

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
            state = self._held()
            save_chat(Path(path), state, system=self.system, turns=self._turns)

    def close(self) -> None:
        """Free the KV cache. The messages stay readable.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            self._drop_cache()

    def _turn(self, prompt: str | None) -> Turn:
        """The turn that `prompt` begins, or goes on with."""
        asked = new_messages_of(prompt, self._turns)
        told = self.messages[: len(self.messages) - len(self._turns)]
        if self._turns and self._turns[-1]["role"] == "tool":
            # The question that led to the calls must not be dropped without them.
            start = open_turn_start(self._turns)
            return Turn(told, self._turns[:start], [*self._turns[start:], *asked])
        return Turn(told, list(self._turns), asked)

    def _asked(
        self, options: Mapping[str, object], turn: Turn
    ) -> tuple[GenerationRequest, OfferedTools | None]:
        """What the caller asks for; `turn` then tells the model of the tools."""
        asked, offer = parse_tool_kwargs(
            options,
            lambda: self._runtime.tool_format,
            self._runtime.encoder.tokenizer,
            lambda: used_ids([*turn.history, *turn.news]),
        )
        turn.specs = () if offer is None else offer.specs
        return asked, offer

    def _answer(
        self,
        turn: Turn,
        asked: GenerationRequest,
        started: float,
        on_end: Callable[[Reply | None], None],
    ) -> ReplyStream:
        return turn.answer(
            self._runtime,
            self._held(),
            asked,
            policy=self._overflow,
            started=started,
            on_end=on_end,
        )

    def _acting(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        max_rounds: int,
        options: Mapping[str, object],
    ) -> tuple[Turn, ToolLoop, Mapping[str, Tool], Callable[[float | None], ReplyStream]]:
        """What a loop needs; the last is what begins its next answer."""
        from edgesdk.tools.tool_loop import ToolLoop

        turn = self._turn(prompt)
        asked, offer = self._asked({**options, "tools": tools}, turn)
        assert offer is not None, "tools are offered"
        if len(offer.functions) < len(offer.specs):
            raise InvalidOption("A tool is no function, so it cannot run.", hint="Use respond().")
        loop = ToolLoop(turn.news, max_rounds=max_rounds, deadline=asked.options.deadline)

        def on_end(reply: Reply | None) -> None:
            if reply is None:
                self._drop_cache()

        def ask(seconds: float | None) -> ReplyStream:
            timed = asked._replace(options=replace(asked.options, deadline=seconds))
            return self._answer(turn, timed, perf_counter(), on_end)

        return turn, loop, offer.functions, ask

    def _joins(self, turn: Turn) -> Callable[[Reply | None], None]:
        """What is to happen when the answer to a turn ends."""

        def on_end(reply: Reply | None) -> None:
            if reply is None:
                # After an error nothing is known of the cache for sure.
                self._drop_cache()
            elif reply.finish_reason != "cancelled" and (
                reply.tokens or reply.finish_reason == "stop"
            ):
                self._turns = [*turn.history, *turn.news, reply.message]
            self._answering.end()

        return on_end

    def _held(self) -> DecodeState:
        if self._state is None:
            self._state = self._runtime.engine.new_state()
        return self._state

    def _drop_cache(self) -> None:
        if self._state is not None:
            self._state.close()
            self._state = None


Message = dict[str, Any]


@dataclass
class Turn:
    """One turn of a chat. It may take several answers, where the model calls tools.

    Attributes:
        told: the system message, or nothing.
        history: the turns before; what an overflow policy made of them, once an answer has ended.
        news: the user's message, and what followed it so far.
        specs: the tools that the model is told of.
    """

    told: list[Message]
    history: list[Message]
    news: list[Message]
    specs: Sequence[dict[str, Any]] = field(default=())

    def answer(
        self,
        runtime: Runtime,
        state: EngineSequence,
        asked: GenerationRequest,
        *,
        policy: OverflowPolicy,
        started: float,
        on_end: Callable[[Reply | None], None],
    ) -> ReplyStream:
        """Start an answer to what was said.

        Raises:
            What `Runtime.answer` raises.
        """
        ids = self._encoded(runtime, [*self.told, *self.history, *self.news])
        limit = prompt_limit(runtime.engine.info.context_length, asked.options.max_tokens)
        if policy != "error" and self.history and len(ids) > limit:
            return self._shortened(
                runtime,
                state,
                asked,
                policy=policy,
                started=started,
                on_end=on_end,
                full=len(ids),
            )
        shared = 0
        if not self.history:
            shared = runtime.shared_tokens([*self.told, *self.news], ids)
        return runtime.answer(
            state,
            ids,
            asked.options,
            started=started,
            on_end=on_end,
            shared=shared,
            structure=asked.structure,
        )

    def _shortened(
        self,
        runtime: Runtime,
        state: EngineSequence,
        asked: GenerationRequest,
        *,
        policy: OverflowPolicy,
        started: float,
        on_end: Callable[[Reply | None], None],
        full: int,
    ) -> ReplyStream:
        """Answer with as many of the latest turns as fit; with all there would be `full` tokens."""
        limit = prompt_limit(runtime.engine.info.context_length, asked.options.max_tokens)

        def encode(turns: list[Message]) -> list[int]:
            return self._encoded(runtime, [*self.told, *turns, *self.news])

        short = drop_oldest(self.history, lambda turns: len(encode(turns)), low_watermark(limit))
        if policy == "summarize":
            return self._summarized(
                runtime, state, asked, short, started=started, on_end=on_end, full=full
            )
        ids = encode(short.turns)

        def ended(reply: Reply | None) -> None:
            self.history = short.turns
            on_end(reply)

        return runtime.answer(
            state,
            ids,
            asked.options,
            started=started,
            on_end=ended,
            overflow=Overflow(policy, len(short.dropped), full, len(ids)),
            structure=asked.structure,
        )

    def _summarized(
        self,
        runtime: Runtime,
        state: EngineSequence,
        asked: GenerationRequest,
        short: ShortenedHistory,
        *,
        started: float,
        on_end: Callable[[Reply | None], None],
        full: int,
    ) -> ReplyStream:
        cancellation = CancellationToken()
        constraint, parse = runtime.constraint_for(asked.structure)

        def begin(ids: list[int], chosen: Options) -> Generation:
            # The summary is free text; only the answer has a form.
            form = constraint if chosen is asked.options else None
            return runtime.generate(
                state, ids, chosen, started=started, cancellation=cancellation, constraint=form
            )

        summarizing = SummarizedAnswer(
            OverflowingConversation(self.told, short, self.news, full),
            begin=begin,
            encode=lambda messages: self._encoded(runtime, messages),
            options=asked.options,
            context_length=runtime.engine.info.context_length,
        )

        def ended(reply: Reply | None) -> None:
            self.history = summarizing.turns
            on_end(reply)

        return runtime.stream(
            summarizing,
            cancellation,
            on_end=ended,
            overflow=lambda: summarizing.overflow,
            parse=parse,
        )

    def _encoded(self, runtime: Runtime, messages: list[Message]) -> list[int]:
        return runtime.encode(messages, self.specs)
