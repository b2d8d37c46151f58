"""A conversation that keeps its KV cache from turn to turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self, Unpack

from edgesdk.decode.options import OptionChanges, options_from
from edgesdk.engines.base import Sequence
from edgesdk.errors import RequestError
from edgesdk.receipt import Reply
from edgesdk.runtime import Runtime
from edgesdk.streaming import AsyncReplyStream, ReplyStream, read_all, read_all_async
from edgesdk.structure.asking import AskChanges, asked_from
from edgesdk.text.prompts import messages_of

if TYPE_CHECKING:
    from edgesdk.tools.acting import Acted


class Chat:
    """A conversation; `Model.chat` makes one. It raises what `Model` raises.

    Each turn renders the whole conversation and computes only what the KV cache does not hold:
    the receipt's `cached_tokens` says how much it held.

    A turn joins the history when its answer ends by itself, at `max_tokens`, or at its deadline.
    One that was cancelled, left before its end or failed leaves the history as it was.

    One turn at a time: asking while an answer is under way raises `RequestError`.
    """

    def __init__(self, runtime: Runtime, *, system: str | None = None) -> None:
        self.system = system
        self._runtime = runtime
        self._turns: list[dict[str, Any]] = []
        self._sequence: Sequence | None = None
        self._answering = threading.Lock()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, the system message first; a copy."""
        told = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*told, *(dict(message) for message in self._turns)]

    def respond(self, prompt: str, **options: Unpack[AskChanges]) -> Reply:
        """Answer the user's next message."""
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Unpack[AskChanges]) -> ReplyStream:
        """Answer the user's next message piece by piece.

        Raises:
            RequestError: the answer before it is still under way.
        """
        started = perf_counter()
        self._begin()
        try:
            return self._turn(prompt, options, started)
        except BaseException:
            self._answering.release()
            raise

    async def arespond(self, prompt: str, **options: Unpack[AskChanges]) -> Reply:
        """`respond` for asyncio; cancelling the task stops the decoding."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(self, prompt: str, **options: Unpack[AskChanges]) -> AsyncReplyStream:
        """`stream` for asyncio; cancelling the task stops the decoding."""
        return AsyncReplyStream(self.stream(prompt, **options))

    def act(
        self,
        prompt: str,
        tools: Iterable[Callable[..., Any]],
        *,
        max_rounds: int = 8,
        **options: Unpack[OptionChanges],
    ) -> Acted:
        """Answer the user's next message with the help of Python functions.

        The model may call them, several in one answer, which run in that order; it is told what
        they return, or why a call failed, and answers again. Arguments are checked against the
        type hints before a function runs. All answers and results join the history, unless this
        raises: then the history is as it was.

        Args:
            tools: functions with type hints; docstrings say to the model what they are for.
            max_rounds: most answers that may call tools.
            options: hold for each answer by itself.

        Raises:
            ToolRoundsExceeded: the model still calls tools after `max_rounds` rounds.
            InvalidOption: a function cannot be a tool, or an option is unknown or out of range.
            RequestError: an answer is under way.
        """
        from edgesdk.tools.acting import act
        from edgesdk.tools.dialect import dialect_of
        from edgesdk.tools.function import toolbox

        box, checked = toolbox(tools), options_from(options)
        encoder, specs = self._runtime.encoder, [tool.spec for tool in box.values()]
        dialect = dialect_of(encoder.template)

        def on_end(reply: Reply | None) -> None:
            if reply is None:
                self._drop_cache()

        def ask(news: list[dict[str, Any]]) -> Reply:
            started = perf_counter()
            messages = dialect.conversation([*self.messages, *news], specs)
            ids = encoder.chat(messages, tools=specs)
            if self._sequence is None:
                self._sequence = self._runtime.engine.sequence()
            return read_all(
                self._runtime.answer(self._sequence, ids, checked, started=started, on_end=on_end)
            )

        self._begin()
        try:
            acted = act(ask, messages_of(prompt), box, dialect, max_rounds=max_rounds)
            self._turns += acted.messages
        finally:
            self._answering.release()
        return acted

    def reset(self) -> None:
        """Forget the conversation; `system` stays.

        Raises:
            RequestError: an answer is under way.
        """
        self._idle()
        self._turns.clear()

    def close(self) -> None:
        """Free the KV cache. The messages stay readable.

        Raises:
            RequestError: an answer is under way.
        """
        self._idle()
        self._drop_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _turn(self, prompt: str, options: AskChanges, started: float) -> ReplyStream:
        [question] = messages_of(prompt)
        ids = self._runtime.encoder.chat([*self.messages, question])
        asked = asked_from(options)
        if self._sequence is None:
            self._sequence = self._runtime.engine.sequence()

        def on_end(reply: Reply | None) -> None:
            if reply is None:
                # After an error nothing is known of the cache for sure.
                self._drop_cache()
            elif reply.finish_reason != "cancelled" and (
                reply.tokens or reply.finish_reason == "stop"
            ):
                self._turns += [question, {"role": "assistant", "content": reply.text}]
            self._answering.release()

        return self._runtime.answer(
            self._sequence,
            ids,
            asked.options,
            started=started,
            on_end=on_end,
            structure=asked.structure,
        )

    def _begin(self) -> None:
        if not self._answering.acquire(blocking=False):
            raise RequestError(
                "This chat is still answering.",
                hint="Read that stream to its end or close it first; use a chat per thread.",
            )

    def _drop_cache(self) -> None:
        if self._sequence is not None:
            self._sequence.close()
            self._sequence = None

    def _idle(self) -> None:
        if self._answering.locked():
            raise RequestError(
                "This chat is still answering.", hint="Read that stream to its end or close it."
            )
