"""What a model and its chats share: the engine, the text side, and how an answer starts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgesdk.decode.loop import Finish, Generation, generate
from edgesdk.decode.options import Options
from edgesdk.engines.base import Engine, Sequence
from edgesdk.overflow import Overflow
from edgesdk.receipt import Receipt, Reply, receipt_of
from edgesdk.streaming import Answer, ReplyStream
from edgesdk.text.prompts import PromptEncoder


@dataclass(frozen=True)
class Runtime:
    """A loaded model's parts. `load_seconds` is what loading all of them took."""

    engine: Engine
    encoder: PromptEncoder
    load_seconds: float

    def answer(
        self,
        sequence: Sequence,
        prompt: list[int],
        options: Options,
        *,
        started: float,
        on_end: Callable[[Reply | None], None],
        overflow: Overflow | None = None,
    ) -> ReplyStream:
        """Start an answer to `prompt` on `sequence`.

        Args:
            started: `time.perf_counter()` when the request came.
            on_end: see `ReplyStream`; not called where this raises.
            overflow: what was done so that `prompt` fits, for the receipt.

        Raises:
            EmptyPrompt, ContextOverflow, InvalidOption: see `edgesdk.decode.loop.generate`.
        """
        cancel = threading.Event()
        generation = self.begin(sequence, prompt, options, started=started, cancel=cancel)
        return self.stream(generation, cancel, on_end=on_end, overflow=lambda: overflow)

    def begin(
        self,
        sequence: Sequence,
        prompt: list[int],
        options: Options,
        *,
        started: float,
        cancel: threading.Event,
    ) -> Generation:
        """An answer without its stream; raises as `answer` does."""
        return generate(
            sequence,
            prompt,
            self.encoder.tokenizer,
            options,
            info=self.engine.info,
            cancel=cancel,
            started=started,
        )

    def stream(
        self,
        answer: Answer,
        cancel: threading.Event,
        *,
        on_end: Callable[[Reply | None], None],
        overflow: Callable[[], Overflow | None],
    ) -> ReplyStream:
        """The stream of an answer that looks at `cancel`; `overflow` is asked at its end."""

        def receipt(finish: Finish) -> Receipt:
            return receipt_of(
                finish, self.engine.info, load_seconds=self.load_seconds, overflow=overflow()
            )

        return ReplyStream(answer, cancel, receipt=receipt, on_end=on_end)
