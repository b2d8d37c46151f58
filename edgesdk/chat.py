"""A conversation that keeps its KV cache from turn to turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from typing_extensions import Self, Unpack

from edgesdk.decode.loop import Generation
from edgesdk.decode.options import OptionChanges, Options, options_from
from edgesdk.engines.base import Sequence
from edgesdk.errors import RequestError
from edgesdk.overflow import (
    Overflow,
    OverflowPolicy,
    checked_policy,
    drop_oldest,
    low_water,
    prompt_limit,
)
from edgesdk.receipt import Reply
from edgesdk.runtime import Runtime
from edgesdk.saved_chat import save_chat
from edgesdk.streaming import AsyncReplyStream, ReplyStream, read_all, read_all_async
from edgesdk.structure.asking import AskChanges, Asked, asked_from
from edgesdk.summarizing import Conversation, Summarizing
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

    Args:
        overflow: see `Model.chat`.
        turns: the conversation so far, the system message left out.
        sequence: has some or all of it in its KV cache; the chat's own from now on.

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
        sequence: Sequence | None = None,
    ) -> None:
        self.system = system
        self._runtime = runtime
        self._overflow = checked_policy(overflow)
        self._turns = [dict(message) for message in turns]
        self._sequence = sequence
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
            return read_all(
                self._runtime.answer(self._held(), ids, checked, started=started, on_end=on_end)
            )

        with self._alone():
            acted = act(ask, messages_of(prompt), box, dialect, max_rounds=max_rounds)
            self._turns += acted.messages
        return acted

    def reset(self) -> None:
        """Forget the conversation; `system` stays.

        Raises:
            RequestError: an answer is under way.
        """
        with self._alone():
            self._turns.clear()

    def fork(self) -> Chat:
        """A chat that goes on from here by itself; what is in the KV cache is not computed again.

        Raises:
            RequestError: an answer is under way.
        """
        with self._alone():
            twin = None if self._sequence is None else self._sequence.fork()
            return Chat(
                self._runtime,
                system=self.system,
                overflow=self._overflow,
                turns=self._turns,
                sequence=twin,
            )

    def save(self, path: str | Path) -> None:
        """Write the conversation and its KV cache to a file for `Model.restore`.

        The file is written beside its place and then put there, whole.

        Raises:
            RequestError: an answer is under way, or `path` cannot be written.
        """
        with self._alone():
            sequence = self._held()
            save_chat(Path(path), sequence, system=self.system, turns=self._turns)

    def close(self) -> None:
        """Free the KV cache. The messages stay readable.

        Raises:
            RequestError: an answer is under way.
        """
        with self._alone():
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
        limit = prompt_limit(self._runtime.engine.info.context_length, asked.options.max_tokens)
        if self._overflow != "error" and self._turns and len(ids) > limit:
            return self._shortened(question, len(ids), asked, started, low_water(limit))
        on_end = self._joins(question, lambda: self._turns)
        shared = 0 if self._turns else self._runtime.shared_tokens([*self.messages, question], ids)
        return self._runtime.answer(
            self._held(),
            ids,
            asked.options,
            started=started,
            on_end=on_end,
            shared=shared,
            structure=asked.structure,
        )

    def _shortened(
        self, question: dict[str, Any], before: int, asked: Asked, started: float, target: int
    ) -> ReplyStream:
        """Answer with as many of the latest turns as fit into `target` tokens."""
        runtime, sequence = self._runtime, self._held()
        told = self.messages[: len(self.messages) - len(self._turns)]

        def encode(turns: list[dict[str, Any]]) -> list[int]:
            return runtime.encoder.chat([*told, *turns, question])

        short = drop_oldest(self._turns, lambda turns: len(encode(turns)), target)
        if self._overflow == "drop_oldest_turns":
            ids = encode(short.turns)
            record = Overflow(self._overflow, len(short.dropped), before, len(ids))
            on_end = self._joins(question, lambda: short.turns)
            return runtime.answer(
                sequence,
                ids,
                asked.options,
                started=started,
                on_end=on_end,
                overflow=record,
                structure=asked.structure,
            )
        cancel = runtime.cancel_event()
        constraint, parse = runtime.held_to(asked.structure)

        def begin(ids: list[int], chosen: Options) -> Generation:
            # The summary is free text; only the answer has a form.
            form = constraint if chosen is asked.options else None
            return runtime.generate(
                sequence, ids, chosen, started=started, cancel=cancel, constraint=form
            )

        summarizing = Summarizing(
            Conversation(told, short, question, before),
            begin=begin,
            encode=runtime.encoder.chat,
            options=asked.options,
            context_length=runtime.engine.info.context_length,
        )
        on_end = self._joins(question, lambda: summarizing.turns)
        return runtime.stream(
            summarizing,
            cancel,
            on_end=on_end,
            overflow=lambda: summarizing.overflow,
            parse=parse,
        )

    def _joins(
        self, question: dict[str, Any], history: Callable[[], list[dict[str, Any]]]
    ) -> Callable[[Reply | None], None]:
        """What is to happen when the answer to `question` after `history` ends."""

        def on_end(reply: Reply | None) -> None:
            if reply is None:
                # After an error nothing is known of the cache for sure.
                self._drop_cache()
            elif reply.finish_reason != "cancelled" and (
                reply.tokens or reply.finish_reason == "stop"
            ):
                answer = {"role": "assistant", "content": reply.text}
                self._turns = [*history(), question, answer]
            self._answering.release()

        return on_end

    def _held(self) -> Sequence:
        if self._sequence is None:
            self._sequence = self._runtime.engine.sequence()
        return self._sequence

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

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        finally:
            self._answering.release()
