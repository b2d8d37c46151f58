"""A conversation with the hybrid client: one KV cache, one set of placeholders, one history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Unpack

from edgesdk.errors import InvalidOption, RequestError, TemplateError
from edgesdk.generation.streaming import read_all, read_all_async
from edgesdk.hybrid.content import text_messages
from edgesdk.hybrid.privacy.detectors import Detector
from edgesdk.hybrid.privacy.policy import Upload, UploadQuestion, UploadVerdict
from edgesdk.hybrid.privacy.redaction import Placeholder, Redactor
from edgesdk.hybrid.reply import HybridReply
from edgesdk.hybrid.request import (
    ConversationState,
    HybridActKwargs,
    HybridKwargs,
    HybridRequest,
    Messages,
    RoutingRules,
    split_rules,
)
from edgesdk.hybrid.request_path import RequestPath
from edgesdk.hybrid.stream import AsyncHybridStream, HybridStream
from edgesdk.model import Model
from edgesdk.overflow import Overflow, checked_policy, drop_oldest, low_watermark, prompt_limit
from edgesdk.request import Request
from edgesdk.runtime import Runtime
from edgesdk.session import SavedChat, Session, Turn, save_chat
from edgesdk.tools.call_messages import Message

if TYPE_CHECKING:
    from edgesdk.tools.tool_loop import ActResult


HybridOverflow = Literal["error", "drop_oldest_turns"]


@dataclass
class HybridTurn(Turn):
    """A turn of a hybrid chat, with the rules for who may answer it.

    Attributes:
        verdict: the strictest of its answers; None before the first.
    """

    rules: RoutingRules
    verdict: UploadVerdict | None = None


class HybridChat(Session[HybridTurn, HybridStream, HybridReply]):
    """A conversation; `HybridClient.chat` makes one. It raises what `HybridClient` raises.

    The device's KV cache is kept from turn to turn. Placeholders stand for the same values in all
    of its turns, and in no other conversation. History has the values themselves.

    A turn that was to stay on the device is never sent with a later one: the strictest rule of all
    turns in the history holds for the next.

    A turn joins the history when its answer ends, also where `max_tokens` or the deadline cut it.
    One that was cancelled, left early or failed, or whose answer broke off or was filtered, leaves
    the history as it was. One turn at a time.

    Args:
        turns: the conversation so far, without its system message.
        rules: what else was kept of it.
        states: hold some or all of it in a KV cache; the chat's own from now on.
    """

    def __init__(
        self,
        path: RequestPath,
        model: Model,
        detectors: Iterable[Detector],
        *,
        system: str | None = None,
        overflow: HybridOverflow = "error",
        turns: Iterable[Message] = (),
        rules: ChatRules | None = None,
        states: ConversationState | None = None,
    ) -> None:
        rules = rules or ChatRules()
        super().__init__(system=system, turns=turns)
        self._path = path
        self._model = model
        self._detectors = tuple(detectors)
        values = {Placeholder(each.kind, each.number): each.value for each in rules.values}
        self._redactor = Redactor(self._detectors, values=values)
        self._states = states or ConversationState()
        self._strictest = rules.strictest
        self._overflow = checked_overflow(overflow)
        self._num_dropped = 0

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
        return self._start(prompt, options)

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

    def preview(self, prompt: str | None = None, **options: Unpack[HybridKwargs]) -> UploadQuestion:
        """What a cloud would be sent if it were asked the user's next message; nothing is sent.

        Its `upload` says by which rule: under "local_only" nothing leaves whatever it shows.

        Args:
            prompt: as for `respond`.
            options: likewise.

        Raises:
            RequestError: an answer is under way, or a detector failed.
        """
        with self._answering.held():
            turn = self._next_turn(prompt, options, perf_counter())
            messages = [*self._system_messages, *turn.history, *turn.new_messages]
            # Its own redactor, so that the placeholders are those that would be sent.
            hybrid = HybridRequest(turn.request.replaced(messages=messages), self._redactor)
            return self._path.preview(hybrid, self._verdict(turn, hybrid))

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
        return self._run_tools(prompt, tools, max_rounds, options)

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
        return await self._run_tools_async(prompt, tools, max_rounds, options)

    def fork(self) -> HybridChat:
        """Make a chat that goes on from here by itself, with the same placeholders and rules.

        What is in the KV cache is not computed again.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            return HybridChat(
                self._path,
                self._model,
                self._detectors,
                system=self.system,
                overflow=self._overflow,
                turns=self._turns,
                rules=self._rules(),
                states=self._states.fork(),
            )

    def save(self, path: str | Path) -> None:
        """Write the chat to a file for `HybridClient.restore`.

        The file has the conversation, its placeholders, its rules and its KV cache, all as they
        are: it is as private as the chat.

        The file is written beside its place and then put there, whole.

        Raises:
            RequestError: an answer is under way, or `path` cannot be written.
        """
        with self._answering.held():
            engine = self._model.runtime.engine
            state = self._states.take(engine, [])
            try:
                save_chat(
                    Path(path),
                    state,
                    system=self.system,
                    turns=self._turns,
                    extra=self._rules().model_dump(),
                )
            finally:
                self._states.release(engine, state)

    def _make_turn(
        self,
        history: list[Message],
        new_messages: list[Message],
        kwargs: Mapping[str, Any],
        started: float,
    ) -> HybridTurn:
        rules, changes = split_rules(kwargs)
        messages = [*self._system_messages, *history, *new_messages]
        request = self._model.runtime.request(messages, changes, started=started)
        return HybridTurn(history, new_messages, request, rules)

    def _answer(
        self,
        turn: HybridTurn,
        request: Request,
        on_end: Callable[[HybridReply | None], None],
    ) -> HybridStream:
        messages = [*self._system_messages, *turn.history, *turn.new_messages]
        hybrid = HybridRequest(request.replaced(messages=messages), self._redactor, self._states)
        if self._overflow == "drop_oldest_turns":
            start = len(self._system_messages)
            history = range(start, start + len(turn.history))
            hybrid, self._num_dropped = fit_to_device(
                self._model.runtime, hybrid, history, self._num_dropped
            )
        verdict = self._verdict(turn, hybrid)
        strictest = turn.verdict
        turn.verdict = verdict if strictest is None else verdict.tightened(strictest.upload, "")
        return self._path.answer(hybrid, verdict, turn.rules.prefer, on_end)

    def _verdict(self, turn: HybridTurn, hybrid: HybridRequest) -> UploadVerdict:
        verdict = self._path.evaluate(hybrid, upload=turn.rules.upload, tags=turn.rules.tags)
        if self._strictest is None:
            return verdict
        return verdict.tightened(self._strictest, "an earlier turn")

    def _ends_turn(self, reply: HybridReply) -> bool:
        # What a limit of the app's own cut is still an answer, and may be gone on with.
        return reply.complete or (
            bool(reply.text) and reply.finish_reason in ("length", "deadline", "repetition")
        )

    def _join(self, turn: HybridTurn) -> None:
        super()._join(turn)
        self._strictest = None if turn.verdict is None else turn.verdict.upload

    def _forget(self) -> None:
        self._strictest, self._num_dropped = None, 0
        self._redactor = Redactor(self._detectors)

    def _free(self) -> None:
        self._states.close()

    def _rules(self) -> ChatRules:
        values = [
            RedactedValue(kind=placeholder.kind, number=placeholder.number, value=value)
            for placeholder, value in self._redactor.values.items()
        ]
        return ChatRules(strictest=self._strictest, values=values)


class RedactedValue(BaseModel):
    """A private value, and its placeholder."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    kind: str
    number: int
    value: str


class ChatRules(BaseModel):
    """What a hybrid chat keeps of its conversation besides the turns, in memory as in a file.

    Attributes:
        strictest: the rule that holds for all later turns; None where there was none yet.
        values: what the conversation's placeholders stand for.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strictest: Upload | None = None
    values: list[RedactedValue] = []


def rules_of(saved: SavedChat) -> ChatRules:
    """Read the rules of a saved chat.

    One that no hybrid client saved has none of its own: those of the client that it goes on with
    hold.
    """
    try:
        return ChatRules.model_validate(saved.extra)
    except ValidationError as error:
        first = error.errors()[0]["msg"]
        raise RequestError(f"The chat's rules cannot be read: {first}.") from None


def checked_overflow(policy: str) -> HybridOverflow:
    """Return `policy` if hybrid chats have it."""
    checked = checked_policy(policy)
    if checked == "summarize":
        raise InvalidOption(
            "A hybrid chat does not summarize: a cloud may yet be sent the turns as they are.",
            hint="Choose 'error' or 'drop_oldest_turns'.",
        )
    return checked


def fit_to_device(
    runtime: Runtime, hybrid: HybridRequest, history: range, unseen: int
) -> tuple[HybridRequest, int]:
    """Have the device see as many of the latest turns as fit its context.

    A cloud is sent all of them.

    Args:
        history: places in the request's messages of the turns that may be left out.
        unseen: how many of these messages were left out before. They stay out while not all fit,
            so that the KV cache of what follows them is of use.

    Returns:
        The request, and how many messages are left out now.
    """
    request = hybrid.request
    messages = request.messages
    before, new = messages[: history.start], messages[history.stop :]
    turns = messages[history.start : history.stop]
    limit = prompt_limit(runtime.engine.info.context_length, request.options.max_tokens)

    def tokens(latest: Messages) -> int:
        return len(request.encode(text_messages([*before, *latest, *new]), request.specs))

    try:
        full = len(hybrid.full.tokens)
        if full <= limit:
            return hybrid, 0
        latest = turns[unseen:]
        if tokens(latest) > limit:
            latest = drop_oldest(latest, tokens, low_watermark(limit)).turns
        left = tokens(latest)
    except TemplateError:
        # The device's model cannot read it anyway, which is said elsewhere.
        return hybrid, 0
    num_dropped = len(turns) - len(latest)
    dropped = sum(message["role"] == "user" for message in turns[:num_dropped])
    overflow = Overflow("drop_oldest_turns", dropped, full, left)
    return replace(hybrid, local_messages=[*before, *latest, *new], overflow=overflow), num_dropped
