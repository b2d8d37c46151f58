"""A conversation with the hybrid client: one KV cache, one set of placeholders, one history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from edgesdk.errors import InvalidOption
from edgesdk.generation.streaming import read_all, read_all_async
from edgesdk.hybrid.chat_history import HybridHistory, history_of
from edgesdk.hybrid.decode_states import ConversationState
from edgesdk.hybrid.overflow import HybridOverflow, checked_overflow, fit_to_device
from edgesdk.hybrid.privacy.detectors import Detector
from edgesdk.hybrid.privacy.policy import UploadVerdict
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.request import (
    HybridActKwargs,
    HybridKwargs,
    HybridRequest,
    Messages,
    RoutingRules,
    hybrid_request_of,
    split_rules,
)
from edgesdk.hybrid.request_path import RequestPath
from edgesdk.hybrid.stream import AsyncHybridStream, HybridStream
from edgesdk.options import options_from
from edgesdk.runtime import Runtime
from edgesdk.session import AnswerLock, new_messages_of, restore_chat, save_chat, with_tool_result
from edgesdk.system.closing import Closeable
from edgesdk.tools.call_messages import open_turn_start, unanswered_calls
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.tool_set import tools_by_name

if TYPE_CHECKING:
    from edgesdk.tools.functions import Tool
    from edgesdk.tools.tool_loop import ActResult, ToolLoop


class HybridChat(Closeable):
    """A conversation; `HybridClient.chat` makes one. It raises what `HybridClient` raises.

    The device's KV cache is kept from turn to turn. Placeholders stand for the same values in all
    of its turns, and in no other conversation. History has the values themselves.

    A turn that was to stay on the device is never sent with a later one: the strictest rule of all
    turns in the history holds for the next.

    A turn joins the history when its answer ends; one that was cancelled, left early or failed
    leaves it as it was. One turn at a time.

    Args:
        path: of the client that made the chat.
        runtime: of the device's model.
        detectors: what finds what is to be hidden.
        overflow: see `HybridClient.chat`.
        past: the conversation so far.
        sequences: have some or all of it in their KV cache; the chat's own from now on.
    """

    def __init__(
        self,
        path: RequestPath,
        runtime: Runtime,
        detectors: Iterable[Detector],
        *,
        system: str | None = None,
        overflow: HybridOverflow = "error",
        past: HybridHistory | None = None,
        sequences: ConversationState | None = None,
    ) -> None:
        past = past or HybridHistory()
        self.system = system
        self._path = path
        self._runtime = runtime
        self._detectors = tuple(detectors)
        self._redactor = Redactor(self._detectors, values=past.values)
        self._sequences = sequences or ConversationState(runtime.engine)
        self._turns: Messages = [dict(message) for message in past.turns]
        self._strictest: UploadVerdict | None = past.strictest
        self._overflow = checked_overflow(overflow)
        self._unseen = 0
        self._answering = AnswerLock()

    @property
    def messages(self) -> Messages:
        """The conversation so far, the system message first; a copy."""
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*told, *(dict(message) for message in self._turns)]

    def respond(self, prompt: str | None = None, **options: Unpack[HybridKwargs]) -> HybridReply:
        """Answer the user's next message.

        Args:
            prompt: the message; None to go on after the results of tool calls (see
                `add_tool_result`).
            options: see `HybridClient.stream`.
        """
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: str | None = None, **options: Unpack[HybridKwargs]) -> HybridStream:
        """Answer the user's next message piece by piece; see `respond`.

        Raises:
            RequestError: the answer before it is still under way, or a tool call has no result.
        """
        self._answering.begin()
        try:
            news = new_messages_of(prompt, self._turns)
            rules, changes = split_rules(options)
            ask, verdict = self._ask(news, rules, changes)

            def ended(reply: HybridReply | None) -> None:
                if reply is not None:
                    self._join([*news, reply.message], verdict)
                self._answering.end()

            return self._path.answer(ask, verdict, rules.prefer, on_end=ended)
        except BaseException:
            self._answering.end()
            raise

    async def arespond(
        self, prompt: str | None = None, **options: Unpack[HybridKwargs]
    ) -> HybridReply:
        """`respond` for asyncio; cancelling the task ends the answer."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(
        self, prompt: str | None = None, **options: Unpack[HybridKwargs]
    ) -> AsyncHybridStream:
        """`stream` for asyncio; cancelling the task ends the answer."""
        return AsyncHybridStream(self.stream(prompt, **options))

    @property
    def pending_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the last answer whose results are still to be given."""
        return unanswered_calls(self._turns)

    def add_tool_result(self, call: ToolCall, result: Any) -> None:
        """Tell what one of the calls gave; when all have a result, `respond()` goes on.

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
        **options: Unpack[HybridActKwargs],
    ) -> ActResult[HybridReply]:
        """Answer the user's next message with the help of Python functions; see
        `edgesdk.chat.Chat.act`. Each answer may come from the device or from the cloud, and only
        calls whose arguments fit a function run it."""
        from edgesdk.tools.tool_loop import act

        with self._answering.held():
            loop = self._loop(prompt, tools, max_rounds, options)
            acted = act(loop.acting, lambda seconds: read_all(loop.ask(seconds)), loop.functions)
            self._join(acted.messages, loop.strictest)
        return acted

    async def aact(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        *,
        max_rounds: int = 8,
        **options: Unpack[HybridActKwargs],
    ) -> ActResult[HybridReply]:
        """`act` for asyncio. Tools may be `async def`: they run in the event loop, others in
        threads; cancelling the task ends the answer and cancels them."""
        from edgesdk.tools.tool_loop import act_async

        with self._answering.held():
            loop = self._loop(prompt, tools, max_rounds, options)

            async def asked(seconds: float | None) -> HybridReply:
                return await read_all_async(AsyncHybridStream(loop.ask(seconds)))

            acted = await act_async(loop.acting, asked, loop.functions)
            self._join(acted.messages, loop.strictest)
        return acted

    def reset(self) -> None:
        """Forget the conversation and its placeholders; `system` stays.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            self._turns, self._strictest, self._unseen = [], None, 0
            self._redactor = Redactor(self._detectors)

    def fork(self) -> HybridChat:
        """A chat that goes on from here by itself, with the same placeholders and rules; what is in
        the KV cache is not computed again.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            return HybridChat(
                self._path,
                self._runtime,
                self._detectors,
                system=self.system,
                overflow=self._overflow,
                past=self._past(),
                sequences=self._sequences.fork(),
            )

    def save(self, path: str | Path) -> None:
        """Write the conversation, its placeholders, its rules and its KV cache to a file for
        `HybridClient.restore`. All of it is there as it is: the file is as private as the chat.

        The file is written beside its place and then put there, whole.

        Raises:
            RequestError: an answer is under way, or `path` cannot be written.
        """
        with self._answering.held():
            state = self._sequences.take([])
            try:
                past = self._past()
                save_chat(
                    Path(path),
                    state,
                    system=self.system,
                    turns=past.turns,
                    beside=past.beside(),
                )
            finally:
                self._sequences.release(state)

    def close(self) -> None:
        """Free the KV cache. The messages stay readable.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            self._sequences.close()

    def _past(self) -> HybridHistory:
        return HybridHistory(self._turns, self._strictest, self._redactor.values)

    def _ask(
        self, news: Messages, rules: RoutingRules, options: Mapping[str, object]
    ) -> tuple[HybridRequest, UploadVerdict]:
        ask = hybrid_request_of(
            self._runtime,
            [*self.messages, *news],
            options,
            redactor=self._redactor,
            sequences=self._sequences,
        )
        if self._overflow == "drop_oldest_turns":
            told = 0 if self.system is None else 1
            open_at = len(self._turns)
            if self._turns and self._turns[-1]["role"] == "tool":
                # The question that led to the calls must not be left out without them.
                open_at = open_turn_start(self._turns)
            history = range(told, told + open_at)
            ask, self._unseen = fit_to_device(self._runtime, ask, history, self._unseen)
        verdict = self._path.evaluate(ask, upload=rules.upload, tags=rules.tags)
        if self._strictest is not None:
            verdict = verdict.tightened(self._strictest.upload, "an earlier turn")
        return ask, verdict

    def _loop(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        max_rounds: int,
        options: Mapping[str, Any],
    ) -> _ActLoop:
        from edgesdk.tools.tool_loop import ToolLoop

        offered, (rules, changes) = list(tools), split_rules(options)
        specs, functions = tools_by_name(offered)
        if len(functions) < len(specs):
            raise InvalidOption("A tool is no function, so it cannot run.", hint="Use respond().")
        deadline = options_from(changes).deadline
        acting = ToolLoop[HybridReply](
            new_messages_of(prompt, self._turns), max_rounds=max_rounds, deadline=deadline
        )

        def ask(seconds: float | None) -> tuple[HybridStream, UploadVerdict]:
            changed = {**changes, "tools": offered, "deadline": seconds}
            asked, verdict = self._ask(list(acting.news), rules, changed)
            return self._path.answer(asked, verdict, rules.prefer), verdict

        return _ActLoop(acting, functions, ask)

    def _join(self, news: Iterable[dict[str, Any]], verdict: UploadVerdict | None) -> None:
        self._turns = [*self._turns, *news]
        self._strictest = verdict


def restore_hybrid_chat(
    path: RequestPath,
    runtime: Runtime,
    detectors: Iterable[Detector],
    file: Path,
    overflow: HybridOverflow,
) -> HybridChat:
    """See `HybridClient.restore`."""
    state = runtime.engine.new_state()
    try:
        saved = restore_chat(file, state)
        past = history_of(saved)
    except BaseException:
        state.close()
        raise
    kept = ConversationState(runtime.engine, state)
    return HybridChat(
        path,
        runtime,
        detectors,
        system=saved.system,
        overflow=overflow,
        past=past,
        sequences=kept,
    )


class _ActLoop:
    """What a loop of answers and tools needs.

    Attributes:
        strictest: the rule of the latest answer.
    """

    def __init__(
        self,
        acting: ToolLoop[HybridReply],
        functions: Mapping[str, Tool],
        begin: Callable[[float | None], tuple[HybridStream, UploadVerdict]],
    ) -> None:
        self.acting = acting
        self.functions = functions
        self.strictest: UploadVerdict | None = None
        self._begin = begin

    def ask(self, seconds: float | None) -> HybridStream:
        """Begin the next answer, which may take so long."""
        stream, verdict = self._begin(seconds)
        before = self.strictest
        self.strictest = verdict if before is None else verdict.tightened(before.upload, "")
        return stream
