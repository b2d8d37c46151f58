"""What a model and its chats share: the engine, the text side, and how an answer starts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from edgesdk.decode.constraint import Constraint
from edgesdk.decode.loop import Finish, FinishReason, generate
from edgesdk.decode.options import Options
from edgesdk.engines.base import Engine, Sequence
from edgesdk.receipt import Receipt, Reply, receipt_of
from edgesdk.streaming import ReplyStream
from edgesdk.structure.answer import value_of
from edgesdk.structure.asking import Structure
from edgesdk.structure.masking import Vocabulary
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
        structure: Structure | None = None,
    ) -> ReplyStream:
        """Start an answer to `prompt` on `sequence`.

        Args:
            started: `time.perf_counter()` when the request came.
            on_end: see `ReplyStream`; not called where this raises.
            structure: the form that the answer is held to.

        Raises:
            EmptyPrompt, ContextOverflow, InvalidOption: see `edgesdk.decode.loop.generate`.
        """
        cancel = threading.Event()
        constraint: Constraint | None = None
        parse: Callable[[str, FinishReason], Any] | None = None
        if structure is not None:
            constraint = self.vocabulary.constraint(structure.grammar)
            parse = partial(value_of, structure, constraint)
        generation = generate(
            sequence,
            prompt,
            self.encoder.tokenizer,
            options,
            info=self.engine.info,
            cancel=cancel,
            started=started,
            constraint=constraint,
        )
        return ReplyStream(generation, cancel, receipt=self._receipt, on_end=on_end, parse=parse)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """For the masks of structures; made when the first one is asked for."""
        return Vocabulary(self.encoder.tokenizer)

    def _receipt(self, finish: Finish) -> Receipt:
        return receipt_of(finish, self.engine.info, load_seconds=self.load_seconds)
