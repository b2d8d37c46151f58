"""What a model and its chats share: engine, tokenizer and template, and how an answer starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import perf_counter
from types import MappingProxyType
from typing import Any, Protocol

from edgesdk.bundle.adapter import Adapter
from edgesdk.engines.base import DecodeState, Engine, adapted_engine
from edgesdk.errors import EngineError, RequestError
from edgesdk.generation.batched_verification import BatchedVerification
from edgesdk.generation.constraint import Constraint
from edgesdk.generation.finish import Finish
from edgesdk.generation.loop import Generation, Step, StepCallback, generate
from edgesdk.generation.prefill import prefill, reusable_prefix
from edgesdk.generation.prefix_cache import PrefixCache
from edgesdk.generation.prompt_logprobs import prompt_steps
from edgesdk.generation.reasoning_of_answer import reasoning_of_answer
from edgesdk.generation.scheduling import EngineScheduler, ScheduledDecodeState
from edgesdk.generation.speculation import (
    AdaptiveDraftLength,
    Drafter,
    LoadedDraftModel,
    PromptLookupDrafter,
    Speculator,
    VerificationCosts,
)
from edgesdk.generation.stopping import StopFilter
from edgesdk.options import Options, options_from
from edgesdk.overflow import Overflow
from edgesdk.receipt import Receipt, receipt_of
from edgesdk.reply import Reply, ReplyStream, StepSource
from edgesdk.request import Request, request_from
from edgesdk.structured.grammar_constraint import EndedConstraint, GrammarVocabulary
from edgesdk.structured.output_format import OutputFormat, read_answer
from edgesdk.system.cancellation import CancellationToken
from edgesdk.text.prompts import PromptEncoder, shared_prefix
from edgesdk.text.reasoning_format import Variables
from edgesdk.tools.call_messages import Message
from edgesdk.tools.tool_format import ToolFormat, detect_tool_format

_LOG = logging.getLogger("edgesdk.generation.prefix_cache")


class Successor(Protocol):
    """Gets ready what takes a runtime's place between two answers."""

    def take(self) -> Runtime | None:
        """The runtime that later answers come from; None as long as there is none."""

    def close(self) -> None:
        """End getting ready, and free what was not taken; harmless when called twice."""


@dataclass(frozen=True)
class Runtime:
    """A loaded model's parts.

    Attributes:
        encoder: makes token ids of texts and conversations.
        load_seconds: what loading all of them took.
        prefix_cache: stores the beginnings of prompts; None to store none.
        draft: a smaller model of the same vocabulary, which drafts tokens; None for none.
        batched_verification: whether the engine computes the same logits together as one by one, as
            far as that was measured.
        sampling: options of answers that say nothing else, as the model's makers recommend them.
        verification_costs: what it costs to verify drafts that were looked up in the text.
        successor: what will take this one's place; None where nothing will.
        scheduler: lets answers take turns at the engine; `draft_scheduler` at the draft model.
    """

    engine: Engine
    encoder: PromptEncoder
    load_seconds: float
    prefix_cache: PrefixCache | None = None
    draft: LoadedDraftModel | None = None
    batched_verification: BatchedVerification = field(default_factory=BatchedVerification)
    verification_costs: VerificationCosts = field(default_factory=VerificationCosts)
    sampling: Mapping[str, float] = field(default_factory=dict)
    successor: Successor | None = None
    scheduler: EngineScheduler = field(init=False)
    draft_scheduler: EngineScheduler = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheduler", EngineScheduler(self.engine.info.concurrency))
        width = 1 if self.draft is None else self.draft.engine.info.concurrency
        object.__setattr__(self, "draft_scheduler", EngineScheduler(width))

    def request(
        self,
        messages: list[Message],
        kwargs: Mapping[str, object],
        *,
        started: float | None = None,
    ) -> Request:
        """The request of keyword arguments; see `edgesdk.request.request_from`."""
        request = request_from(
            messages,
            kwargs,
            encode=self.encode,
            tool_format=lambda: self.tool_format,
            tokenizer=self.encoder.tokenizer,
            sampling=self.sampling,
            started=started,
        )
        level = request.options.reasoning
        if level == "auto":
            return request
        return request.replaced(encode=partial(self.encode, reasoning=level))

    def options(self, kwargs: Mapping[str, object]) -> Options:
        """The options of a free text that keyword arguments and the model's sampling make.

        Raises:
            InvalidOption: one is unknown or out of its range.
        """
        return options_from({**self.sampling, **kwargs})

    def answer(
        self,
        state: DecodeState,
        request: Request,
        *,
        on_end: Callable[[Reply | None], None],
        overflow: Overflow | None = None,
        shared: int = 0,
    ) -> ReplyStream:
        """Start the answer to a request on `state`.

        Args:
            on_end: see `ReplyStream`; not called where this raises.
            overflow: what was done so that the request fits, for the receipt.
            shared: how many tokens at the start later prompts will start with too.

        Raises:
            EmptyPrompt, ContextOverflow, InvalidOption: see `edgesdk.generation.loop.generate`.
        """
        constraint = self.constraint_for(request.answer_format)
        generation = self.generate(state, request, constraint=constraint)

        def ended(reply: Reply | None) -> None:
            if shared and reply is not None and reply.finish_reason != "cancelled":
                self._store_prefix(state, shared)
            on_end(reply)

        return self.stream(generation, request, constraint, on_end=ended, overflow=lambda: overflow)

    def constraint_for(self, output_format: OutputFormat | None) -> Constraint | None:
        """What holds one answer to a format; None where nothing does.

        Raises:
            InvalidOption: no answer has the format.
        """
        if output_format is None or output_format.grammar is None:
            return None
        constraint = self.vocabulary.constraint(output_format.grammar)
        if output_format.is_over is None:
            return constraint
        return EndedConstraint(
            constraint, output_format.is_over, self.encoder.tokenizer.token_bytes
        )

    def generate(
        self,
        state: DecodeState,
        request: Request,
        *,
        constraint: Constraint | None = None,
        on_step: StepCallback | None = None,
    ) -> Generation:
        """The steps of an answer, for those who keep decode states of their own.

        Args:
            constraint: from `constraint_for`, or a wrapper of it.
            on_step: sees the answer without its reasoning; see `edgesdk.generation.loop.generate`.
        """
        options = request.options
        cancellation = request.cancellation.child(options.deadline, started=request.started)
        reasoning = reasoning_of_answer(
            self.encoder, request.tokens, request.specs, chats=bool(request.messages)
        )
        finder = request.repetition_finder(self.encoder.tokenizer, constraint)
        constraint = reasoning.constraint(constraint, options.max_reasoning_tokens)
        # Drafts that run ahead of a constraint would not know what it allows.
        speculator = None
        if constraint is None:
            speculator = self._speculator(request.tokens, options, cancellation)
        return generate(
            ScheduledDecodeState(state, self.scheduler, options.priority, cancellation),
            request.tokens,
            reasoning.shown(request.shown(self.encoder.tokenizer)),
            options,
            info=self.engine.info,
            cancellation=cancellation,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
            started=request.started,
            restore_prefix=None if self.prefix_cache is None else self._restore_prefix,
            speculator=speculator,
            constraint=constraint,
            repetition=finder,
            stops=StopFilter(options.stops, is_call=request.is_call),
            reader=reasoning.reader(),
            on_step=None if on_step is None else reasoning.steps_of_answer(on_step),
        )

    def prompt_steps(self, state: DecodeState, request: Request) -> Iterator[Step]:
        """The tokens of a request's prompt, with their log-probabilities where it asks for these;
        see `edgesdk.generation.prompt_logprobs`."""
        options = request.options
        cancellation = request.cancellation.child(options.deadline, started=request.started)
        return prompt_steps(
            ScheduledDecodeState(state, self.scheduler, options.priority, cancellation),
            request.tokens,
            self.encoder.tokenizer,
            logprobs=request.logprobs,
            top_logprobs=request.top_logprobs,
        )

    @cached_property
    def vocabulary(self) -> GrammarVocabulary:
        """For the masks of structures; made when the first one is asked for."""
        return GrammarVocabulary(self.encoder.tokenizer)

    @cached_property
    def tool_format(self) -> ToolFormat:
        """What the template of prompts with tools knows of them."""
        return detect_tool_format(self.encoder.tool_template or self.encoder.template)

    def uses_generic_tools(self, request: Request) -> bool:
        """Whether a request's tools are described in words that the model was not trained on."""
        return bool(request.specs) and self._has_generic_tools

    @cached_property
    def _has_generic_tools(self) -> bool:
        generic = not self.tool_format.tools
        if generic:
            _LOG.warning(
                "%s: its chat template knows no tools; they are described in a generic way, which"
                " it was not trained on",
                self.engine.info.name,
            )
        return generic

    @cached_property
    def _format_without_tools(self) -> ToolFormat:
        """What the template of other prompts can write of calls that were made before."""
        if self.encoder.tool_template is None:
            return self.tool_format
        return detect_tool_format(self.encoder.template)

    def encode(
        self,
        messages: Sequence[dict[str, Any]],
        specs: Sequence[dict[str, Any]] = (),
        *,
        continues: bool = False,
        reasoning: str = "auto",
        variables: Variables = MappingProxyType({}),
    ) -> list[int]:
        """Ids of a conversation, which may have tool calls and results.

        Args:
            messages, specs: in the form of OpenAI's API; see
                `edgesdk.tools.tool_format.ToolFormat`.
            continues: the last message is the beginning of the answer.
            reasoning: see `edgesdk.options.Options`.
            variables: further ones of the chat template.

        Raises:
            TemplateError, InvalidText, RequestError: see `PromptEncoder.chat`.
            InvalidOption: the model cannot reason like that.
        """
        begun = str(messages[-1]["content"]) if continues else ""
        messages = messages[:-1] if continues else messages
        tool_format = self._format_without_tools
        if specs:
            tool_format = self.tool_format
            # Said once, when it comes to that.
            _ = self._has_generic_tools
        level = self.encoder.reasoning_for(specs).variables(reasoning)
        return self.encoder.chat(
            tool_format.conversation(messages, specs),
            tools=list(specs) or None,
            begun=begun,
            variables={**level, **variables},
        )

    def stream(
        self,
        answer: StepSource,
        request: Request,
        constraint: Constraint | None,
        *,
        on_end: Callable[[Reply | None], None],
        overflow: Callable[[], Overflow | None],
    ) -> ReplyStream:
        """The stream of an answer to a request; `overflow` is asked at its end."""

        def receipt(finish: Finish) -> Receipt:
            return receipt_of(
                finish,
                self.engine.info,
                load_seconds=self.load_seconds,
                overflow=overflow(),
                generic_tools=self.uses_generic_tools(request),
            )

        read = None if request.is_plain else partial(read_answer, request.read, constraint)
        return ReplyStream(answer, request, receipt=receipt, on_end=on_end, parse=read)

    def shared_tokens(self, request: Request) -> int:
        """How many tokens at the start come from the system message; 0 where none is kept."""
        if self.prefix_cache is None or request.messages[0]["role"] != "system":
            return 0
        start = shared_prefix(self.encoder, request.messages[:1])
        return len(start) if request.tokens[: len(start)] == start else 0

    def cache_prefix(self, messages: Sequence[dict[str, Any]]) -> int:
        """See `edgesdk.model.Model.cache_prefix`."""
        if self.prefix_cache is None:
            raise RequestError(
                "This model was loaded without a prefix cache.",
                hint="Load it with prefix_cache=True.",
            )
        ids = shared_prefix(self.encoder, self._format_without_tools.conversation(messages))
        if len(ids) < self.prefix_cache.min_tokens:
            raise RequestError(
                f"The prompt has {len(ids)} tokens; {self.prefix_cache.min_tokens} are the least"
                " that is kept.",
                hint="Short beginnings are computed quickly; just ask.",
            )
        state = ScheduledDecodeState(
            self.engine.new_state(), self.scheduler, Options().priority, CancellationToken()
        )
        try:
            self._restore_prefix(state, ids)
            state.rewind(reusable_prefix(state, ids, self.engine.info.prefill_step))
            prefill(state, ids[len(state.tokens) :])
            self.prefix_cache.store(state, self.engine.kv_identity, len(ids))
        except OSError as error:
            raise RequestError(
                f"{self.prefix_cache.folder} cannot be written: {error.strerror}."
            ) from error
        finally:
            state.close()
        return len(ids)

    def _restore_prefix(self, state: DecodeState, prompt: list[int]) -> None:
        if self.prefix_cache is not None:
            self.prefix_cache.restore(state, self.engine.kv_identity, prompt)

    def _store_prefix(self, state: DecodeState, length: int) -> None:
        """Store a beginning if that is possible; the answer does not depend on it."""
        if self.prefix_cache is None:
            return
        try:
            self.prefix_cache.store(state, self.engine.kv_identity, length)
        except (OSError, EngineError) as error:
            _LOG.warning("a prefix of %d tokens was not stored: %s", length, error)

    def latest(self) -> Runtime:
        """The runtime that answers come from now: this one, or what took its place."""
        taken = None if self.successor is None else self.successor.take()
        return self if taken is None else taken

    def with_adapter(self, adapter: Adapter) -> Runtime:
        """The same loaded model with an adapter; the two are closed one by one.

        Drafts come from the text only, because a draft model goes with the model alone.

        Raises:
            AdapterMismatch, EngineError: see `edgesdk.engines.base.adapted_engine`.
        """
        started = perf_counter()
        engine = adapted_engine(self.engine, adapter)
        return Runtime(
            engine,
            self.encoder,
            perf_counter() - started,
            self.prefix_cache,
            sampling=self.sampling,
        )

    def close(self) -> None:
        """Free the models."""
        if self.successor is not None:
            self.successor.close()
        self.engine.close()
        if self.draft is not None:
            self.draft.close()

    def _speculator(
        self, prompt: list[int], options: Options, cancellation: CancellationToken
    ) -> Speculator | None:
        way = options.speculate or "auto"
        if way == "off":
            return None
        proven = way == "auto" and options.repeatable
        drafter: Drafter = PromptLookupDrafter()
        costs = self.verification_costs
        if self.draft is not None and way == "auto":

            def scheduled(state: DecodeState) -> DecodeState:
                return ScheduledDecodeState(
                    state, self.draft_scheduler, options.priority, cancellation
                )

            drafter, costs = self.draft.drafter(scheduled), self.draft.costs
        return Speculator(
            prompt,
            drafter,
            self.batched_verification if proven else None,
            AdaptiveDraftLength(costs, observes_guesses=drafter.free),
        )
