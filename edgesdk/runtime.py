"""What a model and its chats share: the engine, the text side, and how an answer starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from edgesdk.decode.constraint import Constraint
from edgesdk.decode.draft import Draft
from edgesdk.decode.lookup import PromptLookup
from edgesdk.decode.loop import Finish, FinishReason, Generation, Watch, generate
from edgesdk.decode.options import Options
from edgesdk.decode.pace import Costs, Pace
from edgesdk.decode.prefill import prefill
from edgesdk.decode.rows import RowCheck
from edgesdk.decode.speculation import Drafter, Speculator
from edgesdk.engines.base import Engine, Sequence
from edgesdk.engines.caller import Caller
from edgesdk.errors import EngineError, RequestError
from edgesdk.overflow import Overflow
from edgesdk.prefixes import PrefixCache
from edgesdk.receipt import Receipt, Reply, receipt_of
from edgesdk.scheduling import Cancel, Gate, GatedSequence
from edgesdk.streaming import Answer, ReplyStream
from edgesdk.structure.answer import value_of, value_of_free
from edgesdk.structure.asking import Structure
from edgesdk.structure.masking import Vocabulary
from edgesdk.text.beginnings import beginning
from edgesdk.text.prompts import PromptEncoder
from edgesdk.tools.dialect import Dialect, dialect_of

Parse = Callable[[str, FinishReason], Any]

_LOG = logging.getLogger("edgesdk.prefixes")


@dataclass(frozen=True)
class Runtime:
    """A loaded model's parts.

    Attributes:
        load_seconds: what loading all of them took.
        prefixes: where beginnings of prompts are kept; None for nowhere.
        draft: a smaller model of the same vocabulary, which guesses.
        rows: whether the engine's rows agree, as far as that was measured.
        costs: of the verification of what was looked up.
    """

    engine: Engine
    encoder: PromptEncoder
    load_seconds: float
    prefixes: PrefixCache | None = None
    draft: Draft | None = None
    rows: RowCheck = field(default_factory=RowCheck)
    costs: Costs = field(default_factory=Costs)
    gate: Gate = field(init=False)
    draft_gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gate", Gate(self.engine.info.concurrency))
        width = 1 if self.draft is None else self.draft.engine.info.concurrency
        object.__setattr__(self, "draft_gate", Gate(width))

    def answer(
        self,
        sequence: Sequence,
        prompt: list[int],
        options: Options,
        *,
        started: float,
        on_end: Callable[[Reply | None], None],
        overflow: Overflow | None = None,
        shared: int = 0,
        structure: Structure | None = None,
    ) -> ReplyStream:
        """Start an answer to `prompt` on `sequence`.

        Args:
            started: `time.perf_counter()` when the request came.
            on_end: see `ReplyStream`; not called where this raises.
            overflow: what was done so that `prompt` fits, for the receipt.
            shared: how many tokens at the start of `prompt` later prompts will start with too.
            structure: the form that the answer is held to.

        Raises:
            EmptyPrompt, ContextOverflow, InvalidOption: see `edgesdk.decode.loop.generate`.
        """
        cancel = self.cancel_event()
        constraint, parse = self.held_to(structure)
        generation = self.generate(
            sequence, prompt, options, started=started, cancel=cancel, constraint=constraint
        )

        def ended(reply: Reply | None) -> None:
            if shared and reply is not None and reply.finish_reason != "cancelled":
                self._keep(sequence, shared)
            on_end(reply)

        return self.stream(generation, cancel, on_end=ended, overflow=lambda: overflow, parse=parse)

    def held_to(self, structure: Structure | None) -> tuple[Constraint | None, Parse | None]:
        """What holds an answer to a form, and what reads its value off the text."""
        if structure is None:
            return None, None
        if structure.grammar is None:
            return None, partial(value_of_free, structure)
        constraint = self.vocabulary.constraint(structure.grammar)
        return constraint, partial(value_of, structure, constraint)

    def cancel_event(self) -> Cancel:
        """An event that ends an answer, whatever it is at."""
        return Cancel()

    def generate(
        self,
        sequence: Sequence,
        prompt: list[int],
        options: Options,
        *,
        started: float,
        cancel: Cancel,
        constraint: Constraint | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        watch: Watch | None = None,
    ) -> Generation:
        """The steps of an answer, for those who keep sequences of their own.

        Arguments and errors are those of `edgesdk.decode.loop.generate`.
        """
        until = None if options.deadline is None else started + options.deadline
        caller = cancel.caller(until)
        # Drafts that run ahead of a constraint would not know what it allows.
        speculator = self._speculator(prompt, options, caller) if constraint is None else None
        return generate(
            GatedSequence(sequence, self.gate, options.priority, caller),
            prompt,
            self.encoder.tokenizer,
            options,
            info=self.engine.info,
            cancel=cancel,
            caller=caller,
            logprobs=logprobs,
            top_logprobs=top_logprobs,
            started=started,
            warm=None if self.prefixes is None else self._warm,
            speculator=speculator,
            constraint=constraint,
            watch=watch,
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """For the masks of structures; made when the first one is asked for."""
        return Vocabulary(self.encoder.tokenizer)

    @cached_property
    def dialect(self) -> Dialect:
        """What the chat template knows of tools."""
        return dialect_of(self.encoder.template)

    def encode(
        self, messages: Items[dict[str, Any]], specs: Items[dict[str, Any]] = ()
    ) -> list[int]:
        """Ids of a conversation, which may have tool calls and results.

        Args:
            messages, specs: in the form of OpenAI's API; see `edgesdk.tools.dialect.Dialect`.

        Raises:
            TemplateError, InvalidText, RequestError: see `PromptEncoder.chat`.
        """
        return self.encoder.chat(
            self.dialect.conversation(messages, specs), tools=list(specs) or None
        )

    def stream(
        self,
        answer: Answer,
        cancel: Cancel,
        *,
        on_end: Callable[[Reply | None], None],
        overflow: Callable[[], Overflow | None],
        parse: Parse | None = None,
    ) -> ReplyStream:
        """The stream of an answer that looks at `cancel`; `overflow` is asked at its end."""

        def receipt(finish: Finish) -> Receipt:
            return receipt_of(
                finish, self.engine.info, load_seconds=self.load_seconds, overflow=overflow()
            )

        return ReplyStream(answer, cancel, receipt=receipt, on_end=on_end, parse=parse)

    def shared_tokens(self, messages: Items[dict[str, Any]], ids: list[int]) -> int:
        """How many of `ids` at their start come from the system message; 0 where none is kept."""
        if self.prefixes is None or messages[0]["role"] != "system":
            return 0
        start = beginning(self.encoder, messages[:1])
        return len(start) if ids[: len(start)] == start else 0

    def remember(self, messages: Items[dict[str, Any]]) -> int:
        """See `edgesdk.model.Model.remember`."""
        if self.prefixes is None:
            raise RequestError(
                "This model was loaded without a prefix cache.",
                hint="Load it with prefix_cache=True.",
            )
        ids = beginning(self.encoder, self.dialect.conversation(messages))
        if len(ids) < self.prefixes.at_least:
            raise RequestError(
                f"There are {len(ids)} tokens to remember; {self.prefixes.at_least} are the least"
                " that is kept.",
                hint="Short beginnings are computed quickly; just ask.",
            )
        sequence = GatedSequence(self.engine.sequence(), self.gate, Options().priority, Caller())
        try:
            self._warm(sequence, ids)
            rest = ids[len(sequence.tokens) :]
            if rest:
                prefill(sequence, rest)
            self.prefixes.keep(sequence, self.engine.origin, len(ids))
        except OSError as error:
            raise RequestError(
                f"{self.prefixes.folder} cannot be written: {error.strerror}."
            ) from error
        finally:
            sequence.close()
        return len(ids)

    def _warm(self, sequence: Sequence, prompt: list[int]) -> None:
        if self.prefixes is not None:
            self.prefixes.restore(sequence, self.engine.origin, prompt)

    def _keep(self, sequence: Sequence, length: int) -> None:
        """Keep a beginning if that is possible; the answer does not depend on it."""
        if self.prefixes is None:
            return
        try:
            self.prefixes.keep(sequence, self.engine.origin, length)
        except (OSError, EngineError) as error:
            _LOG.warning("a prefix of %d tokens was not kept: %s", length, error)

    def close(self) -> None:
        """Free the models."""
        self.engine.close()
        if self.draft is not None:
            self.draft.close()

    def _speculator(self, prompt: list[int], options: Options, caller: Caller) -> Speculator | None:
        way = options.speculate or "auto"
        if way == "off":
            return None
        proven = way == "auto" and options.repeatable
        drafter: Drafter = PromptLookup()
        costs = self.costs
        if self.draft is not None and way == "auto":

            def gated(sequence: Sequence) -> Sequence:
                return GatedSequence(sequence, self.draft_gate, options.priority, caller)

            drafter, costs = self.draft.drafter(gated), self.draft.costs
        return Speculator(
            prompt, drafter, self.rows if proven else None, Pace(costs, watching=drafter.free)
        )
