"""What a model and its chats share: the engine, the text side, and how an answer starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from edgesdk.decode.loop import Finish, generate
from edgesdk.decode.options import Options
from edgesdk.engines.base import Engine, Sequence
from edgesdk.receipt import Receipt, Reply, receipt_of
from edgesdk.scheduling import Cancel, Gate, GatedSequence
from edgesdk.streaming import ReplyStream
from edgesdk.text.prompts import PromptEncoder


@dataclass(frozen=True)
class Runtime:
    """A loaded model's parts. `load_seconds` is what loading all of them took."""

    engine: Engine
    encoder: PromptEncoder
    load_seconds: float
    gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gate", Gate(self.engine.info.concurrency))

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
        cancel = Cancel(self.gate)

        def remaining() -> float | None:
            return None if options.deadline is None else started + options.deadline - perf_counter()

        generation = generate(
            GatedSequence(
                sequence,
                self.gate,
                options.priority,
                stopped=cancel.is_set,
                remaining=remaining,
            ),
            prompt,
            self.encoder.tokenizer,
            options,
            info=self.engine.info,
            cancel=cancel,
            started=started,
        )
        return ReplyStream(generation, cancel, receipt=self._receipt, on_end=on_end)

    def _receipt(self, finish: Finish) -> Receipt:
        return receipt_of(finish, self.engine.info, load_seconds=self.load_seconds)
