"""The device's part of an answer: a draft, and more samples where it is unsure."""

from __future__ import annotations

import json
from collections.abc import Generator
from functools import partial
from time import perf_counter
from typing import Any

from edgesdk.errors import ContextOverflow, DeadlineExceeded, StructureError
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.confidence.confidence import Confidence, SignalMeter, Signals
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.request import ConversationState, HybridRequest, Messages
from edgesdk.hybrid.router import Preflight, function_name
from edgesdk.hybrid.self_consistency import SelfConsistency, sample_until_agreed
from edgesdk.hybrid.stream import HybridEvent, Steps
from edgesdk.model import Model
from edgesdk.options import Options
from edgesdk.overflow import Overflow
from edgesdk.receipt import receipt_of
from edgesdk.reply import ReasoningDelta
from edgesdk.request import Encode, Request
from edgesdk.runtime import Runtime
from edgesdk.structured.output_format import read_answer
from edgesdk.system.cancellation import CancellationToken
from edgesdk.tools.calls import ToolCalls

# Tokens between two checks whether to abort: signals change slowly, and a check at every token
# would cost more than it saves.
CHECK_EVERY = 8


class LocalModel:
    """Answers with the device's model. Several threads may use it."""

    def __init__(
        self, model: Model, preflight: Preflight, self_consistency: SelfConsistency | None
    ) -> None:
        self._model = model
        self._preflight = preflight
        self._self_consistency = self_consistency

    @property
    def bundle(self) -> str:
        """Hash of the model's bundle."""
        return self._model.runtime.engine.kv_identity.model

    @property
    def encode(self) -> Encode:
        """Makes token ids of messages and tool specs."""
        return self._model.runtime.encode

    def fingerprint(self, confidence: Confidence) -> str:
        """Identifies the settings that decide which answers are made.

        Empty for default settings. Settings that depend on the device's state are not in it.
        """
        settings = self._preflight.settings()
        if self._self_consistency is not None:
            settings["self_consistency"] = {
                **vars(self._self_consistency),
                "similarity": function_name(self._self_consistency.similarity),
                "threshold": confidence.threshold,
            }
        return json.dumps(settings, sort_keys=True) if settings else ""

    def answer(
        self,
        hybrid: HybridRequest,
        confidence: Confidence,
        *,
        cloud_allowed: bool,
        threshold: float = 0.0,
    ) -> Generator[HybridEvent, None, LocalDraft]:
        """Yield the device's answer as it comes; return the draft.

        Args:
            confidence: judges the answer while it is made.
            cloud_allowed: whether a cloud may answer instead.
            threshold: decides about the answer; above 1 no further sample could save one.

        Raises:
            RequestError: the messages need more than a model of text has.
            DeadlineExceeded: the deadline passed before the first token.
            ContextOverflow, EmptyPrompt, TemplateError, EngineError: see `edgesdk.model.Model`.
        """
        self_consistency = self._self_consistency if threshold <= 1 else None
        making = self._steps(hybrid, confidence, self_consistency, cloud_allowed=cloud_allowed)
        with Steps(making) as steps:
            for step in steps:
                if step is not None:
                    yield step
            return steps.result

    def draft_for_calibration(
        self, messages: Messages, options: Options, confidence: Confidence, *, cloud_allowed: bool
    ) -> Generator[object, None, LocalDraft | None]:
        """Make the draft that `answer` would make of a prompt, to label it.

        It is None where the prompt itself is rejected. Something is yielded after each piece, so
        that the caller can stop. The router is not asked where no cloud may answer instead.
        """
        hybrid = HybridRequest(Request(messages, options, self.encode), Redactor(()))
        if cloud_allowed and self._preflight.check(hybrid, prompt_only=True) is not None:
            return None
        return (
            yield from self._steps(
                hybrid, confidence, self._self_consistency, cloud_allowed=cloud_allowed
            )
        )

    def _steps(
        self,
        hybrid: HybridRequest,
        confidence: Confidence,
        self_consistency: SelfConsistency | None,
        *,
        cloud_allowed: bool,
    ) -> Generator[HybridEvent | None, None, LocalDraft]:
        """Do the work of `answer`; yield None while there is nothing to show."""
        self._preflight.require_text(hybrid)
        request = hybrid.for_device
        # All drafts of an answer come from one device, also where another gets ready meanwhile, and
        # on one state: a lender that serves others might give them another.
        runtime, lender = self._model.runtime, hybrid.states
        engine = runtime.engine
        states = ConversationState(
            None if lender is None else (engine, lender.take(engine, request.tokens))
        )
        draft = partial(
            _draft,
            runtime,
            states=states,
            confidence=confidence,
            prompt_log_odds=self._preflight.prompt_log_odds(hybrid.request.messages),
            overflow=hybrid.overflow,
        )
        try:
            first = yield from draft(request, may_abort=cloud_allowed)
            self._preflight.observe(first.receipt)
            if self_consistency is None or not self_consistency.applies_to(
                first, confidence, cloud_allowed=cloud_allowed
            ):
                return first

            def again(
                options: Options, instruction: str | None
            ) -> Generator[None, None, LocalDraft | None]:
                changes: dict[str, Any] = {"options": options, "started": perf_counter()}
                if instruction is not None:
                    changes["messages"] = _with_instruction(request.messages, instruction)
                return _silent(draft(request.replaced(**changes), may_abort=False))

            deadline = CancellationToken(request.options.deadline, started=request.started)
            best = yield from sample_until_agreed(
                first, again, request.options, confidence, self_consistency, deadline
            )
        finally:
            states.give_back(lender)
        if best.text != first.text:
            yield Restart("the device's answers agree on another")
            if best.reasoning:
                yield ReasoningDelta(best.reasoning, "local")
            yield TextDelta(best.text, "local")
        return best


def _draft(
    runtime: Runtime,
    request: Request,
    *,
    states: ConversationState,
    confidence: Confidence,
    prompt_log_odds: float,
    overflow: Overflow | None,
    may_abort: bool,
) -> Generator[TextDelta | ReasoningDelta, None, LocalDraft]:
    """Yield the pieces of an answer; return the draft.

    Args:
        may_abort: whether to end it as soon as it is predicted to be wrong.
    """
    meter = SignalMeter(prompt_log_odds, confidence.probe)
    constraint = runtime.constraint_for(request.answer_format)
    state = states.take(runtime.engine, request.tokens)
    pieces: list[str] = []
    thoughts: list[str] = []
    partial_signals: list[Signals] = []
    next_check = confidence.decide_after
    predicted_wrong = False
    try:
        generation = runtime.generate(
            state,
            request,
            constraint=None if constraint is None else meter.observe(constraint),
            on_step=meter.update,
        )
        try:
            for step in generation:
                if step.reasoning:
                    thoughts.append(step.reasoning)
                    yield ReasoningDelta(step.reasoning, "local")
                if step.text:
                    pieces.append(step.text)
                    yield TextDelta(step.text, "local")
                # Of just so many tokens, however many there are: the engine decodes ahead.
                while meter.tokens > next_check:
                    partial_signals.append(meter.first(next_check))
                    next_check += CHECK_EVERY
                    predicted_wrong = predicted_wrong or confidence.predicts_wrong(
                        partial_signals[-1]
                    )
                if predicted_wrong and may_abort:
                    break
        finally:
            generation.close()
    except BaseException:
        # After an error nothing is known of the cache for sure.
        state.close()
        raise
    states.release(runtime.engine, state)
    aborted = predicted_wrong and may_abort
    finish = generation.finish
    assert finish is not None, "a generation that was closed has a finish"
    if finish.reason == "deadline" and not finish.tokens:
        raise DeadlineExceeded("The deadline passed before the first token.")
    text, signals = "".join(pieces), meter.signals()
    parsed, format_error = None, None
    if not request.is_plain and not aborted:
        try:
            parsed = read_answer(request.read, constraint, text, finish.reason)
        except StructureError as error:
            format_error = error
    calls = ToolCalls()
    if request.tools is not None and not aborted:
        calls = request.read(text) if parsed is None else parsed
    return LocalDraft(
        text,
        receipt_of(
            finish, runtime.engine.info, load_seconds=runtime.load_seconds, overflow=overflow
        ),
        signals,
        None if signals is None else confidence.of(signals),
        aborted=aborted,
        predicted_wrong=predicted_wrong,
        parsed=None if request.output_format is None else parsed,
        calls=calls,
        format_error=format_error,
        hidden_state=meter.hidden_state,
        partial_signals=tuple(partial_signals),
        reasoning="".join(thoughts),
    )


def _silent(
    drafting: Generator[object, None, LocalDraft],
) -> Generator[None, None, LocalDraft | None]:
    """Make an answer, and show nothing of it; None where it did not come to its end."""
    try:
        with Steps(drafting) as steps:
            for _ in steps:
                yield None
    except (DeadlineExceeded, ContextOverflow):
        return None
    draft = steps.result
    return None if draft.receipt.finish_reason in ("cancelled", "deadline") else draft


def _with_instruction(messages: Messages, instruction: str) -> Messages:
    *before, last = messages
    if last["role"] != "user":
        return [*messages, {"role": "user", "content": instruction}]
    return [*before, {**last, "content": f"{last['content']}\n\n{instruction}"}]
