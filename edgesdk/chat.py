"""A conversation that keeps its KV cache from turn to turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

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
from edgesdk.summarizing import Conversation, Summarizing
from edgesdk.text.prompts import messages_of


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

    def respond(self, prompt: str, **options: Unpack[OptionChanges]) -> Reply:
        """Answer the user's next message."""
        return read_all(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Unpack[OptionChanges]) -> ReplyStream:
        """Answer the user's next message piece by piece.

        Raises:
            RequestError: the answer before it is still under way.
        """
        started = perf_counter()
        if not self._answering.acquire(blocking=False):
            raise RequestError(
                "This chat is still answering.",
                hint="Read that stream to its end or close it first; use a chat per thread.",
            )
        try:
            return self._turn(prompt, options, started)
        except BaseException:
            self._answering.release()
            raise

    async def arespond(self, prompt: str, **options: Unpack[OptionChanges]) -> Reply:
        """`respond` for asyncio; cancelling the task stops the decoding."""
        return await read_all_async(self.astream(prompt, **options))

    def astream(self, prompt: str, **options: Unpack[OptionChanges]) -> AsyncReplyStream:
        """`stream` for asyncio; cancelling the task stops the decoding."""
        return AsyncReplyStream(self.stream(prompt, **options))

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

    def _turn(self, prompt: str, options: OptionChanges, started: float) -> ReplyStream:
        [question] = messages_of(prompt)
        ids = self._runtime.encoder.chat([*self.messages, question])
        checked = options_from(options)
        limit = prompt_limit(self._runtime.engine.info.context_length, checked.max_tokens)
        if self._overflow != "error" and self._turns and len(ids) > limit:
            return self._shortened(question, len(ids), checked, started, low_water(limit))
        on_end = self._joins(question, lambda: self._turns)
        shared = 0 if self._turns else self._runtime.shared_tokens([*self.messages, question], ids)
        return self._runtime.answer(
            self._held(), ids, checked, started=started, on_end=on_end, shared=shared
        )

    def _shortened(
        self, question: dict[str, Any], before: int, options: Options, started: float, target: int
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
                sequence, ids, options, started=started, on_end=on_end, overflow=record
            )
        cancel = runtime.cancel_event()

        def begin(ids: list[int], chosen: Options) -> Generation:
            return runtime.begin(sequence, ids, chosen, started=started, cancel=cancel)

        summarizing = Summarizing(
            Conversation(told, short, question, before),
            begin=begin,
            encode=runtime.encoder.chat,
            options=options,
            context_length=runtime.engine.info.context_length,
        )
        on_end = self._joins(question, lambda: summarizing.turns)
        return runtime.stream(
            summarizing, cancel, on_end=on_end, overflow=lambda: summarizing.overflow
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

    def _drop_cache(self) -> None:
        if self._sequence is not None:
            self._sequence.close()
            self._sequence = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._answering.acquire(blocking=False):
            raise RequestError(
                "This chat is still answering.", hint="Read that stream to its end or close it."
            )
        try:
            yield
        finally:
            self._answering.release()
