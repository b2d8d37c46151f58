"""What a model and its chats share: the engine, the text side, and how an answer starts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgesdk.decode.loop import Finish, Generation, generate
from edgesdk.decode.options import Options
from edgesdk.engines.base import Engine, Sequence
from edgesdk.receipt import Receipt, Reply, receipt_of
from edgesdk.streaming import ReplyStream
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
    ) -> ReplyStream:
        """Start an answer to `prompt` on `sequence`.

        Args:
            started: `time.perf_counter()` when the request came.
            on_end: see `ReplyStream`; not called where this raises.

        Raises:
            EmptyPrompt, ContextOverflow, InvalidOption: see `edgesdk.decode.loop.generate`.
        """
        cancel = threading.Event()
        generation = self.generate(sequence, prompt, options, cancel=cancel, started=started)
        return ReplyStream(generation, cancel, receipt=self._receipt, on_end=on_end)

    def generate(
        self,
        sequence: Sequence,
        prompt: list[int],
        options: Options,
        *,
        cancel: threading.Event,
        started: float,
        logprobs: bool = False,
        top_logprobs: int = 0,
    ) -> Generation:
        """The steps of an answer, for those who keep sequences of their own.

        Arguments and errors are those of `edgesdk.decode.loop.generate`.
        """
        return generate(
            sequence,
            prompt,
            self.encoder.tokenizer,
            options,
            info=self.engine.info,
            cancel=cancel,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            started=started,
        )

    def _receipt(self, finish: Finish) -> Receipt:
        return receipt_of(finish, self.engine.info, load_seconds=self.load_seconds)
