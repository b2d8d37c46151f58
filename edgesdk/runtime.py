"""What a model and its chats share: the engine, the text side, and how an answer starts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from edgesdk.decode.draft import Draft
from edgesdk.decode.lookup import PromptLookup
from edgesdk.decode.loop import Finish, generate
from edgesdk.decode.options import Options
from edgesdk.decode.pace import Pace
from edgesdk.decode.rows import RowCheck
from edgesdk.decode.speculation import Drafter, Speculator
from edgesdk.engines.base import Engine, Sequence
from edgesdk.receipt import Receipt, Reply, receipt_of
from edgesdk.streaming import ReplyStream
from edgesdk.text.prompts import PromptEncoder


@dataclass(frozen=True)
class Runtime:
    """A loaded model's parts. `load_seconds` is what loading all of them took.

    Attributes:
        draft: a smaller model of the same vocabulary, which guesses.
        rows: what was measured of the engine.
    """

    engine: Engine
    encoder: PromptEncoder
    load_seconds: float
    draft: Draft | None = None
    rows: RowCheck = field(default_factory=RowCheck)

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
        generation = generate(
            sequence,
            prompt,
            self.encoder.tokenizer,
            options,
            info=self.engine.info,
            cancel=cancel,
            started=started,
            speculator=self._speculator(prompt, options),
        )
        return ReplyStream(generation, cancel, receipt=self._receipt, on_end=on_end)

    def close(self) -> None:
        """Free the models."""
        self.engine.close()
        if self.draft is not None:
            self.draft.close()

    def _speculator(self, prompt: list[int], options: Options) -> Speculator | None:
        if options.speculate == "off":
            return None
        proven = options.speculate == "auto" and options.repeatable
        drafter: Drafter
        if self.draft is not None and options.speculate == "auto":
            drafter = self.draft.drafter()
        else:
            drafter = PromptLookup()
        return Speculator(prompt, drafter, self.rows if proven else None, Pace())

    def _receipt(self, finish: Finish) -> Receipt:
        return receipt_of(finish, self.engine.info, load_seconds=self.load_seconds)
