"""A conversation with the hybrid client: one KV cache, one set of placeholders, one history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from edgesdk.closing import Closes
from edgesdk.conversation import OneAtATime, given, news_of
from edgesdk.decode.options import options_from
from edgesdk.errors import InvalidOption
from edgesdk.hybrid.ask import Ask, Messages, ask_of
from edgesdk.hybrid.changes import HybridActChanges, HybridChanges, Rules, parted
from edgesdk.hybrid.client import HybridClient
from edgesdk.hybrid.fitting import HybridOverflow, checked_overflow, without_oldest
from edgesdk.hybrid.past import Past, past_of
from edgesdk.hybrid.privacy.finding import Detector
from edgesdk.hybrid.privacy.policy import Verdict
from edgesdk.hybrid.privacy.vault import Vault
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.sequences import KeptSequence
from edgesdk.hybrid.stream import (
    AsyncHybridStream,
    HybridStream,
)
from edgesdk.relaying import read_all, read_all_async
from edgesdk.runtime import Runtime
from edgesdk.saved_chat import restore_chat, save_chat
from edgesdk.tools.calls import ToolCall
from edgesdk.tools.messages import open_turn, unanswered
from edgesdk.tools.offer import toolbox

if TYPE_CHECKING:
    from edgesdk.tools.acting import Acted, Acting
    from edgesdk.tools.function import Tool


class HybridChat(Closes):
    """A conversation; `HybridClient.chat` makes one. It raises what `HybridClient` raises.

    The device's KV cache is kept from turn to turn. Placeholders stand for the same values in all
    of its turns, and in no other conversation. History has the values themselves.

    A turn that was to stay on the device is never sent with a later one: the strictest rule of all
    turns in the history holds for the next.

    A turn joins the history when its answer ends; one that was cancelled, left early or failed
    leaves it as it was. One turn at a time.

    Args:
        client: asks, within its policy, budget and journal.
        runtime: of the device's model.
        detectors: what finds what is to be hidden.
        overflow: see `HybridClient.chat`.
        past: the conversation so far.
        sequences: have some or all of it in their KV cache; the chat's own from now on.
    """

    def __init__(
        self,
        client: HybridClient,
        runtime: Runtime,
        detectors: Iterable[Detector],
        *,
        system: str | None = None,
        overflow: HybridOverflow = "error",
        past: Past | None = None,
        sequences: KeptSequence | None = None,
    ) -> None:
        past = past or Past()
        self.system = system
        self._client = client
        self._runtime = runtime
        self._detectors = tuple(detectors)
        self._vault = Vault(self._detectors, values=past.values)
        self._sequences = sequences or KeptSequence(runtime.engine)
        self._turns: Messages = [dict(message) for message in past.turns]
        self._strictest: Verdict | None = past.strictest
        self._overflow = checked_overflow(overflow)
        self._unseen = 0
        self._answering = OneAtATime()

    @property
    def messages(self) -> Messages:
        """The conversation so far, the system message first; a copy."""
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*told, *(dict(message) for message in self._turns)]

    def respond(self, prompt: str | None = None, **options: Unpack[HybridChanges]) -> HybridReply:
        """Answer the user's next message.

        Args:
            prompt: the message; None to go on after the results of tool calls (see `give`).
            options: see `HybridClient.stream`.
        """
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: str | None = None, **options: Unpack[HybridChanges]) -> HybridStream:
        """Answer the user's next message piece by piece; see `respond`.

        Raises:
            RequestError: the answer before it is still under way, or a tool call has no result.
        """
        self._answering.begin()
        try:
            news = news_of(prompt, self._turns)
            rules, changes = parted(options)
            ask, verdict = self._ask(news, rules, changes)

            def ended(reply: HybridReply | None) -> None:
                if reply is not None:
                    self._join([*news, reply.message], verdict)
                self._answering.end()

            return self._client.answer(ask, verdict, rules.prefer, on_end=ended)
        except BaseException:
            self._answering.end()
            raise

    async def arespond(
        self, prompt: str | None = None, **options: Unpack[HybridChanges]
    ) -> HybridReply:
        """`respond` for asyncio; cancelling the task ends the answer."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(
        self, prompt: str | None = None, **options: Unpack[HybridChanges]
    ) -> AsyncHybridStream:
        """`stream` for asyncio; cancelling the task ends the answer."""
        return AsyncHybridStream(self.stream(prompt, **options))

    @property
    def waiting_for(self) -> tuple[ToolCall, ...]:
        """The calls of the last answer whose results are still to be given."""
        return unanswered(self._turns)

    def give(self, call: ToolCall, result: Any) -> None:
        """Tell what one of the calls gave; when all have a result, `respond()` goes on.

        Args:
            call: one of `waiting_for`.
            result: a text as it is, anything else as JSON.

        Raises:
            RequestError: an answer is under way, or no result of that call is waited for.
        """
        with self._answering.held():
            self._turns = given(self._turns, call, result)

    def act(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        *,
        max_rounds: int = 8,
        **options: Unpack[HybridActChanges],
    ) -> Acted[HybridReply]:
        """Answer the user's next message with the help of Python functions; see
        `edgesdk.chat.Chat.act`. Each answer may come from the device or from the cloud, and only
        calls whose arguments fit a function run it."""
        from edgesdk.tools.acting import act

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
        **options: Unpack[HybridActChanges],
    ) -> Acted[HybridReply]:
        """`act` for asyncio. Tools may be `async def`: they run in the event loop, others in
        threads; cancelling the task ends the answer and cancels them."""
        from edgesdk.tools.acting import act_async

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
            self._vault = Vault(self._detectors)

    def fork(self) -> HybridChat:
        """A chat that goes on from here by itself, with the same placeholders and rules; what is in
        the KV cache is not computed again.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            return HybridChat(
                self._client,
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
            sequence = self._sequences.take([])
            try:
                past = self._past()
                save_chat(
                    Path(path),
                    sequence,
                    system=self.system,
                    turns=past.turns,
                    beside=past.beside(),
                )
            finally:
                self._sequences.give_back(sequence)

    def close(self) -> None:
        """Free the KV cache. The messages stay readable.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            self._sequences.close()

    def _past(self) -> Past:
        return Past(self._turns, self._strictest, self._vault.values)

    def _ask(
        self, news: Messages, rules: Rules, options: Mapping[str, object]
    ) -> tuple[Ask, Verdict]:
        ask = ask_of(
            self._runtime,
            [*self.messages, *news],
            options,
            vault=self._vault,
            sequences=self._sequences,
        )
        if self._overflow == "drop_oldest_turns":
            told = 0 if self.system is None else 1
            open_at = len(self._turns)
            if self._turns and self._turns[-1]["role"] == "tool":
                # The question that led to the calls must not be left out without them.
                open_at = open_turn(self._turns)
            history = range(told, told + open_at)
            ask, self._unseen = without_oldest(self._runtime, ask, history, self._unseen)
        verdict = self._client.judge(ask, upload=rules.upload, tags=rules.tags)
        if self._strictest is not None:
            verdict = verdict.at_most(self._strictest.upload, "an earlier turn")
        return ask, verdict

    def _loop(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        max_rounds: int,
        options: Mapping[str, Any],
    ) -> _Loop:
        from edgesdk.tools.acting import Acting

        offered, (rules, changes) = list(tools), parted(options)
        specs, functions = toolbox(offered)
        if len(functions) < len(specs):
            raise InvalidOption("A tool is no function, so it cannot run.", hint="Use respond().")
        deadline = options_from(changes).deadline
        acting = Acting[HybridReply](
            news_of(prompt, self._turns), max_rounds=max_rounds, deadline=deadline
        )

        def ask(seconds: float | None) -> tuple[HybridStream, Verdict]:
            changed = {**changes, "tools": offered, "deadline": seconds}
            asked, verdict = self._ask(list(acting.news), rules, changed)
            return self._client.answer(asked, verdict, rules.prefer), verdict

        return _Loop(acting, functions, ask)

    def _join(self, news: Iterable[dict[str, Any]], verdict: Verdict | None) -> None:
        self._turns = [*self._turns, *news]
        self._strictest = verdict


def restored(
    client: HybridClient,
    runtime: Runtime,
    detectors: Iterable[Detector],
    path: Path,
    overflow: HybridOverflow,
) -> HybridChat:
    """See `HybridClient.restore`."""
    sequence = runtime.engine.sequence()
    try:
        saved = restore_chat(path, sequence)
        past = past_of(saved)
    except BaseException:
        sequence.close()
        raise
    kept = KeptSequence(runtime.engine, sequence)
    return HybridChat(
        client,
        runtime,
        detectors,
        system=saved.system,
        overflow=overflow,
        past=past,
        sequences=kept,
    )


class _Loop:
    """What a loop of answers and tools needs.

    Attributes:
        strictest: the rule of the latest answer.
    """

    def __init__(
        self,
        acting: Acting[HybridReply],
        functions: Mapping[str, Tool],
        begin: Callable[[float | None], tuple[HybridStream, Verdict]],
    ) -> None:
        self.acting = acting
        self.functions = functions
        self.strictest: Verdict | None = None
        self._begin = begin

    def ask(self, seconds: float | None) -> HybridStream:
        """Begin the next answer, which may take so long."""
        stream, verdict = self._begin(seconds)
        before = self.strictest
        self.strictest = verdict if before is None else verdict.at_most(before.upload, "")
        return stream
