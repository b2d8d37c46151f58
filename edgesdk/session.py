"""What all chats share: turns, tool results, the tool loop, one answer at a time, saving.

A chat differs from another in who answers it: see `edgesdk.chat.Chat` and
`edgesdk.hybrid.chat.HybridChat`.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, field_validator

from edgesdk.engines.base import DecodeState
from edgesdk.errors import EmptyPrompt, InvalidOption, RequestError
from edgesdk.generation.streaming import AnswerStream, AsyncStream, read_all, read_all_async
from edgesdk.request import Request
from edgesdk.system.cancellation import CancellationToken
from edgesdk.system.closing import Closeable
from edgesdk.text.prompts import as_messages
from edgesdk.tools.call_messages import (
    Message,
    add_result,
    calls_of,
    open_turn_start,
    unanswered_calls,
)
from edgesdk.tools.calls import ToolCall

if TYPE_CHECKING:
    from edgesdk.tools.tool_loop import ActResult, ToolLoop


class ChatReply(Protocol):
    """What a chat needs of a reply."""

    @property
    def message(self) -> Message:
        """The answer as a message of the conversation."""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the answer makes."""


_Reply = TypeVar("_Reply", bound=ChatReply)
_Stream = TypeVar("_Stream", bound=AnswerStream[Any, Any])


@dataclass
class Turn:
    """One turn of a chat. It may take several answers, where the model calls tools.

    Attributes:
        history: the turns before; what an overflow policy left of them, once an answer has ended.
        new_messages: the user's message, and what followed it so far.
        request: what is asked; each answer gives it the messages of its time.
    """

    history: list[Message]
    new_messages: list[Message]
    request: Request


_Turn = TypeVar("_Turn", bound=Turn)


class Session(Closeable, Generic[_Turn, _Stream, _Reply]):
    """The base of chats: it keeps the conversation, and lets one answer at a time be made.

    Args:
        system: the system message; None for none.
        turns: the conversation so far, the system message left out.
    """

    def __init__(self, *, system: str | None = None, turns: Iterable[Message] = ()) -> None:
        self.system = system
        self._turns: list[Message] = [dict(message) for message in turns]
        self._answering = AnswerLock()

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, the system message first; a copy."""
        return [*self._system_messages, *(dict(message) for message in self._turns)]

    @property
    def pending_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the last answer whose results are still to be added."""
        return unanswered_calls(self._turns)

    def add_tool_result(self, call: ToolCall, result: Any) -> None:
        """Tell the model the result of one of its calls; when all have one, `respond()` goes on.

        Args:
            call: one of `pending_calls`.
            result: a text as it is, anything else as JSON.

        Raises:
            RequestError: an answer is under way, or no result of that call is waited for.
        """
        from edgesdk.tools.tool_loop import result_text

        with self._answering.held():
            if call.id not in {pending.id for pending in self.pending_calls}:
                raise RequestError(
                    f"This chat waits for no result of the call {call.id!r} of {call.name!r}.",
                    hint="Add one result for each of chat.pending_calls.",
                )
            self._turns = add_result(self._turns, call, result_text(result))

    def rewind(self, turns: int) -> None:
        """Go back to the end of an earlier turn; what is left is not computed again.

        The rules of a hybrid chat stay as strict as they were.

        Args:
            turns: how many stay. A turn is a message of the user with all that followed.

        Raises:
            InvalidOption: there are fewer.
            RequestError: an answer is under way.
        """
        with self._answering.held():
            starts = [n for n, message in enumerate(self._turns) if message["role"] == "user"]
            if not 0 <= turns <= len(starts):
                raise InvalidOption(f"The chat has {len(starts)} turns; {turns} cannot stay.")
            self._turns = self._turns[: [*starts, len(self._turns)][turns]]

    def add_messages(self, messages: Iterable[Message]) -> None:
        """Add messages that were said elsewhere, in OpenAI's form; the next turn computes them.

        Raises:
            RequestError: one is no message or a system message, or an answer is under way.
        """
        with self._answering.held():
            added = as_messages(list(messages))
            if any(message["role"] == "system" for message in added):
                raise RequestError(
                    "A conversation has one system message.", hint="Set chat.system instead."
                )
            self._turns = [*self._turns, *added]

    def reset(self) -> None:
        """Forget the conversation; `system` stays.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            self._turns = []
            self._forget()

    def close(self) -> None:
        """Free the KV cache. The messages stay readable.

        Raises:
            RequestError: an answer is under way.
        """
        with self._answering.held():
            self._free()

    @abstractmethod
    def _make_turn(
        self,
        history: list[Message],
        new_messages: list[Message],
        kwargs: Mapping[str, Any],
        started: float,
    ) -> _Turn:
        """The turn that keyword arguments ask for; raises what is wrong with them."""

    @abstractmethod
    def _answer(
        self, turn: _Turn, request: Request, on_end: Callable[[_Reply | None], None]
    ) -> _Stream:
        """Start an answer to what was said in a turn so far.

        Args:
            request: the turn's, with the time that this answer may take. Its messages are set here.
            on_end: called once, with the reply, or with None where there is none.
        """

    @abstractmethod
    def _free(self) -> None:
        """Free the KV cache."""

    def _forget(self) -> None:
        """Forget what the chat keeps of the conversation besides its turns."""

    def _ends_turn(self, reply: _Reply) -> bool:
        """Whether a turn joins the history with this reply."""
        return True

    def _join(self, turn: _Turn) -> None:
        """Add a turn to the history."""
        self._turns = [*turn.history, *turn.new_messages]

    @property
    def _system_messages(self) -> list[Message]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def _start(self, prompt: str | None, kwargs: Mapping[str, Any]) -> _Stream:
        """Start the answer to the user's next message; the turn joins the history at its end."""
        started = perf_counter()
        self._answering.begin()
        try:
            turn = self._next_turn(prompt, kwargs, started)

            def on_end(reply: _Reply | None) -> None:
                if reply is not None and self._ends_turn(reply):
                    turn.new_messages.append(reply.message)
                    self._join(turn)
                self._answering.end()

            return self._answer(turn, turn.request, on_end)
        except BaseException:
            self._answering.end()
            raise

    def _run_tools(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        max_rounds: int,
        kwargs: Mapping[str, Any],
    ) -> ActResult[_Reply]:
        """Answer with the help of tools; the turn joins the history when all of it is done."""
        from edgesdk.tools.tool_loop import act

        with self._answering.held():
            turn, loop = self._tool_turn(prompt, tools, max_rounds, kwargs)
            assert turn.request.tools is not None, "tools are offered"
            result = act(
                loop,
                lambda seconds: read_all(self._answer_within(seconds, turn)),
                turn.request.tools.functions,
            )
            if self._ends_turn(result.reply):
                self._join(turn)
        return result

    async def _run_tools_async(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        max_rounds: int,
        kwargs: Mapping[str, Any],
    ) -> ActResult[_Reply]:
        """`_run_tools` for asyncio."""
        from edgesdk.tools.tool_loop import act_async

        with self._answering.held():
            turn, loop = self._tool_turn(prompt, tools, max_rounds, kwargs)
            assert turn.request.tools is not None, "tools are offered"

            async def answer(seconds: float | None) -> _Reply:
                return await read_all_async(AsyncStream(self._answer_within(seconds, turn)))

            result = await act_async(loop, answer, turn.request.tools.functions)
            if self._ends_turn(result.reply):
                self._join(turn)
        return result

    def _next_turn(self, prompt: str | None, kwargs: Mapping[str, Any], started: float) -> _Turn:
        new = new_messages_of(prompt, self._turns)
        start = len(self._turns)
        if self._turns and self._turns[-1]["role"] == "tool":
            # The question that led to the calls must not be dropped without them.
            start = open_turn_start(self._turns)
        return self._make_turn(self._turns[:start], [*self._turns[start:], *new], kwargs, started)

    def _tool_turn(
        self,
        prompt: str | None,
        tools: Iterable[Callable[..., Any]],
        max_rounds: int,
        kwargs: Mapping[str, Any],
    ) -> tuple[_Turn, ToolLoop[_Reply]]:
        from edgesdk.tools.tool_loop import ToolLoop

        turn = self._next_turn(prompt, {**kwargs, "tools": tools}, perf_counter())
        request = turn.request
        assert request.tools is not None, "tools are offered"
        if len(request.tools.functions) < len(request.specs):
            raise InvalidOption("A tool is no function, so it cannot run.", hint="Use respond().")
        loop = ToolLoop[_Reply](
            turn.new_messages, max_rounds=max_rounds, deadline=request.options.deadline
        )
        return turn, loop

    def _answer_within(self, seconds: float | None, turn: _Turn) -> _Stream:
        request = turn.request.replaced(
            options=replace(turn.request.options, deadline=seconds),
            cancellation=CancellationToken(),
            started=perf_counter(),
        )
        return self._answer(turn, request, lambda reply: None)


class AnswerLock:
    """Held by the answer that is under way; nobody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def begin(self) -> None:
        """An answer begins.

        Raises:
            RequestError: another one is under way.
        """
        if not self._lock.acquire(blocking=False):
            raise RequestError(
                "This chat is still answering.",
                hint="Read that stream to its end or close it first; use a chat per thread.",
            )

    def end(self) -> None:
        """It is over."""
        self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        """`begin` and `end` around a block."""
        self.begin()
        try:
            yield
        finally:
            self.end()


def new_messages_of(prompt: str | None, turns: Sequence[Message]) -> list[Message]:
    """What a prompt adds to a conversation; nothing where it goes on from results of calls.

    Raises:
        RequestError: a call has no result yet.
        EmptyPrompt: there is nothing to answer.
    """
    pending = unanswered_calls(turns)
    if pending:
        raise RequestError(
            f"The model waits for the result of {', '.join(call.name for call in pending)}.",
            hint="Add it with chat.add_tool_result(call, result); it may say that nothing was"
            " done.",
        )
    new = [] if prompt is None else as_messages(prompt)
    if not new and (not turns or turns[-1]["role"] != "tool"):
        raise EmptyPrompt("There is nothing to answer.", hint="Give a prompt.")
    return new


class SavedChat(BaseModel):
    """What a file holds of a conversation, the KV cache left out.

    Attributes:
        turns: the conversation, the system message left out.
        extra: what the kind of chat that wrote it keeps of its own.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    system: str | None
    turns: list[dict[str, JsonValue]]
    extra: dict[str, JsonValue] = {}

    @field_validator("turns")
    @classmethod
    def _have_roles(cls, turns: list[dict[str, JsonValue]]) -> list[dict[str, JsonValue]]:
        if not all(isinstance(message.get("role"), str) for message in turns):
            raise ValueError("a message has no role")
        for message in turns:
            calls_of(message)
        return turns


def save_chat(
    path: Path,
    state: DecodeState,
    *,
    system: str | None,
    turns: Sequence[Message],
    extra: Mapping[str, JsonValue] | None = None,
) -> None:
    """Write a conversation and the KV cache that `state` holds of it; see `SavedChat`.

    Raises:
        RequestError: `path` cannot be written; what stood there is untouched.
    """
    saved = SavedChat(system=system, turns=list(turns), extra=dict(extra or {}))
    try:
        state.save(path, saved.model_dump())
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written: {error.strerror}.", hint="Name another place."
        ) from None


def restore_chat(path: Path, state: DecodeState) -> SavedChat:
    """Fill `state` with what `save_chat` wrote; the rest of it comes back.

    Raises:
        RequestError: the file is damaged, of another model or engine, or holds no chat.
        ContextOverflow: it holds more tokens than this model was loaded for.
    """
    metadata = state.restore(path)
    try:
        return SavedChat.model_validate(metadata)
    except ValidationError:
        raise RequestError(
            f"{path} holds no chat.", hint="Give a file that Chat.save wrote."
        ) from None
