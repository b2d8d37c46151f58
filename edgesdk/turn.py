"""A turn under way: what it follows, what was said in it so far, and how it is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgesdk.decode.loop import Generation
from edgesdk.decode.options import Options
from edgesdk.engines.base import Sequence as EngineSequence
from edgesdk.overflow import (
    Overflow,
    OverflowPolicy,
    Shortened,
    drop_oldest,
    low_water,
    prompt_limit,
)
from edgesdk.receipt import Reply
from edgesdk.runtime import Runtime
from edgesdk.streaming import ReplyStream
from edgesdk.structure.asking import Asked
from edgesdk.summarizing import Conversation, Summarizing

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
        sequence: EngineSequence,
        asked: Asked,
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
                sequence,
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
            sequence,
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
        sequence: EngineSequence,
        asked: Asked,
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

        short = drop_oldest(self.history, lambda turns: len(encode(turns)), low_water(limit))
        if policy == "summarize":
            return self._summarized(
                runtime, sequence, asked, short, started=started, on_end=on_end, full=full
            )
        ids = encode(short.turns)

        def ended(reply: Reply | None) -> None:
            self.history = short.turns
            on_end(reply)

        return runtime.answer(
            sequence,
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
        sequence: EngineSequence,
        asked: Asked,
        short: Shortened,
        *,
        started: float,
        on_end: Callable[[Reply | None], None],
        full: int,
    ) -> ReplyStream:
        cancel = runtime.cancel_event()
        constraint, parse = runtime.held_to(asked.structure)

        def begin(ids: list[int], chosen: Options) -> Generation:
            # The summary is free text; only the answer has a form.
            form = constraint if chosen is asked.options else None
            return runtime.generate(
                sequence, ids, chosen, started=started, cancel=cancel, constraint=form
            )

        summarizing = Summarizing(
            Conversation(self.told, short, self.news, full),
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
            cancel,
            on_end=ended,
            overflow=lambda: summarizing.overflow,
            parse=parse,
        )

    def _encoded(self, runtime: Runtime, messages: list[Message]) -> list[int]:
        return runtime.encode(messages, self.specs)
