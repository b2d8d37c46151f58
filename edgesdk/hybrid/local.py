"""The device's part of an answer: a draft, and more samples where it is unsure."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import replace

from edgesdk.errors import ContextOverflow, DeadlineExceeded, StructureError
from edgesdk.hybrid.cloud.cloud_reply import Restart, TextDelta
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.signals import SignalMeter, Signals
from edgesdk.hybrid.decode_states import SharedState
from edgesdk.hybrid.privacy.redaction import Redactor
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.request import HybridRequest, Messages
from edgesdk.hybrid.router import Preflight
from edgesdk.hybrid.self_consistency import SelfConsistency, sample_until_agreed
from edgesdk.options import Options
from edgesdk.receipt import receipt_of
from edgesdk.runtime import Runtime
from edgesdk.structured.output_format import read_answer
from edgesdk.system.cancellation import CancellationToken
from edgesdk.tools.calls import ToolCalls, parse_calls


class LocalModel:
    """Answers with one model. Several threads may use it.

    Args:
        preflight: is told how fast the answers were.
        self_consistency: None for one answer each.
    """

    def __init__(
        self, runtime: Runtime, preflight: Preflight, self_consistency: SelfConsistency | None
    ) -> None:
        self._runtime = runtime
        self._preflight = preflight
        self._self_consistency = self_consistency

    @property
    def bundle(self) -> str:
        """Hash of the model's bundle."""
        return self._runtime.engine.kv_identity.model

    def fingerprint(self, confidence: Confidence) -> str:
        """What of its settings decides which answers it makes, to be compared; empty where all is
        as without a gate and effort. Settings that depend on the device's state are not in it."""
        self_consistency, hint, prompts = (
            self._self_consistency,
            self._preflight.hint,
            self._preflight.classifier,
        )
        found: dict[str, object] = {}
        if self_consistency is not None:
            fields = {
                name: value
                for name, value in vars(self_consistency).items()
                if name != "similarity"
            }
            threshold = confidence.threshold
            found["self_consistency"] = {
                **fields,
                "similarity": _function_name(self_consistency.similarity),
                "threshold": threshold,
            }
        if hint is not None:
            found["hint"] = _function_name(hint)
        if prompts is not None:
            found["classifier"] = [prompts.regression.to_json(), prompts.threshold]
        return json.dumps(found, sort_keys=True) if found else ""

    def answer(
        self,
        ask: HybridRequest,
        confidence: Confidence,
        *,
        cloud_allowed: bool,
        threshold: float = 0.0,
    ) -> Generator[TextDelta | Restart, None, LocalDraft]:
        """Yield the answer as it comes; return what it was.

        Args:
            confidence: by which the answer is made.
            cloud_allowed: whether anyone else could answer.
            threshold: that will decide about the answer; above 1 no effort could save one.

        Raises:
            RequestError: the messages need more than a model of text has.
            ContextOverflow, EmptyPrompt, TemplateError, EngineError, DeadlineExceeded: see
                `edgesdk.hybrid.local.make_draft`.
        """
        self_consistency = self._self_consistency if threshold <= 1 else None
        steps = self._steps(ask, confidence, self_consistency, cloud_allowed=cloud_allowed)
        try:
            while True:
                step = next(steps)
                if step is not None:
                    yield step
        except StopIteration as end:
            found: LocalDraft = end.value
            return found
        finally:
            steps.close()

    def draft_for_calibration(
        self, messages: Messages, options: Options, confidence: Confidence, *, cloud_allowed: bool
    ) -> Generator[object, None, LocalDraft | None]:
        """What `answer` would make of a prompt, to judge it by; None where the prompt itself would
        not let the device try. Something is yielded after each piece, so that it can be left.

        Args:
            cloud_allowed: whether anyone else can answer; without, no gate is asked.

        Raises:
            EmptyPrompt, EngineError, DeadlineExceeded: see `answer`.
        """
        if cloud_allowed and self._preflight.check(messages, options, prompt_only=True) is not None:
            return None
        ask = HybridRequest(messages, options, Redactor(()))
        return (
            yield from self._steps(
                ask, confidence, self._self_consistency, cloud_allowed=cloud_allowed
            )
        )

    def _steps(
        self,
        ask: HybridRequest,
        confidence: Confidence,
        self_consistency: SelfConsistency | None,
        *,
        cloud_allowed: bool,
    ) -> Generator[TextDelta | Restart | None, None, LocalDraft]:
        """As `answer`; None is yielded while there is nothing to show."""
        deadline = CancellationToken(ask.options.deadline)
        lent = SharedState(ask.lender(self._runtime))
        odds = self._preflight.prompt_log_odds(ask.messages)
        device_messages = self._preflight.device_messages(
            ask.messages if ask.seen is None else ask.seen
        )
        ask = replace(ask, messages=device_messages, sequences=lent)
        try:
            first = yield from self._shown(ask, confidence, odds, cloud_allowed=cloud_allowed)
            self._preflight.observe(first.receipt)
            if self_consistency is None or not self_consistency.applies_to(
                first, confidence, cloud_allowed=cloud_allowed
            ):
                return first

            def again(
                options: Options, instruction: str | None
            ) -> Generator[None, None, LocalDraft | None]:
                messages = _with_instruction(ask.messages, instruction)
                mine = replace(ask, messages=messages, options=options)
                return self._unseen(mine, confidence, odds)

            best = yield from sample_until_agreed(
                first, again, ask.options, confidence, self_consistency, deadline
            )
        finally:
            lent.end()
        if best.text != first.text:
            yield Restart("the device's answers agree on another")
            yield TextDelta(best.text, "local")
        return best

    def _shown(
        self, ask: HybridRequest, confidence: Confidence, odds: float, *, cloud_allowed: bool
    ) -> Generator[TextDelta, None, LocalDraft]:
        steps = make_draft(
            self._runtime, ask, confidence, may_abort=cloud_allowed, prompt_log_odds=odds
        )
        try:
            while True:
                yield TextDelta(next(steps), "local")
        except StopIteration as end:
            found: LocalDraft = end.value
            return found
        finally:
            steps.close()

    def _unseen(
        self, ask: HybridRequest, confidence: Confidence, odds: float
    ) -> Generator[None, None, LocalDraft | None]:
        """One more answer; None where it did not come to its end. The prompt is in the KV cache."""
        steps = self._shown(ask, confidence, odds, cloud_allowed=False)
        try:
            while True:
                next(steps)
                yield None
        except StopIteration as end:
            found: LocalDraft = end.value
        except (DeadlineExceeded, ContextOverflow):
            return None
        finally:
            steps.close()
        return found if found.receipt.finish_reason in ("stop", "length") else None


def _function_name(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _with_instruction(device_messages: Messages, instruction: str | None) -> Messages:
    if instruction is None:
        return device_messages
    *before, last = device_messages
    if last["role"] != "user":
        return [*device_messages, {"role": "user", "content": instruction}]
    return [*before, {**last, "content": f"{last['content']}\n\n{instruction}"}]


# Tokens after which giving up is considered anew: signals change slowly, and asking at every token
# would cost more than it tells.
CHECK_EVERY = 8


def make_draft(
    runtime: Runtime,
    ask: HybridRequest,
    confidence: Confidence,
    *,
    may_abort: bool,
    prompt_log_odds: float = 0.0,
) -> Generator[str, None, LocalDraft]:
    """Yield the pieces of the answer; return what it was.

    Args:
        may_abort: whether anyone else could answer instead.
        prompt_log_odds: see `edgesdk.hybrid.confidence.signals.Signals`.

    Raises:
        ContextOverflow, EmptyPrompt, TemplateError, EngineError: see `edgesdk.model.Model`.
        DeadlineExceeded: the deadline passed before the first token.
    """
    request = ask.for_device(runtime)
    meter = SignalMeter(prompt_log_odds, confidence.probe)
    constraint = runtime.constraint_for(request.answer_format)
    sequences = ask.lender(runtime)
    state = sequences.take(request.tokens)
    pieces: list[str] = []
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
                if step.text:
                    pieces.append(step.text)
                    yield step.text
                # Of just so many tokens, however many there are by now: the engine decodes ahead.
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
    sequences.release(state)
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
    if ask.tools is not None and not aborted:
        calls = ask.tools.check(parse_calls(text), ask.used_ids)
    return LocalDraft(
        text,
        receipt_of(
            finish,
            runtime.engine.info,
            load_seconds=runtime.load_seconds,
            overflow=ask.overflow,
        ),
        signals,
        None if signals is None else confidence.of(signals),
        aborted=aborted,
        predicted_wrong=predicted_wrong,
        parsed=None if ask.form is None else parsed,
        calls=calls,
        format_error=format_error,
        hidden_state=meter.hidden_state,
        partial_signals=tuple(partial_signals),
    )
