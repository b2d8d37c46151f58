"""The device's answer, with an eye on how sure it is."""

from __future__ import annotations

from collections.abc import Generator
from time import perf_counter

from edgesdk.errors import DeadlineExceeded, StructureError
from edgesdk.hybrid.ask import Ask
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.trust.signals import SignalMeter, Signals
from edgesdk.receipt import receipt_of
from edgesdk.runtime import Runtime
from edgesdk.tools.calls import ToolCalls, calls_in

# Tokens after which giving up is considered anew: signals change slowly, and asking at every token
# would cost more than it tells.
CONSIDERED_EVERY = 8


def draft(
    runtime: Runtime,
    ask: Ask,
    confidence: Confidence,
    *,
    may_give_up: bool,
    prompt_log_odds: float = 0.0,
) -> Generator[str, None, LocalDraft]:
    """Yield the pieces of the answer; return what it was.

    Args:
        may_give_up: whether anyone else could answer instead.
        prompt_log_odds: see `edgesdk.hybrid.trust.signals.Signals`.

    Raises:
        ContextOverflow, EmptyPrompt, TemplateError, EngineError: see `edgesdk.model.Model`.
        DeadlineExceeded: the deadline passed before the first token.
    """
    started = perf_counter()
    ids = ask.encoded(runtime)
    meter = SignalMeter(prompt_log_odds, confidence.probe)
    constraint, parse = runtime.held_to(ask.structure)
    sequences = ask.lender(runtime)
    sequence = sequences.take(ids)
    pieces: list[str] = []
    halfway: list[Signals] = []
    considering = confidence.decide_after
    doubted = False
    try:
        generation = runtime.generate(
            sequence,
            ids,
            ask.options,
            started=started,
            cancel=ask.cancel,
            constraint=None if constraint is None else meter.minding(constraint),
            watch=meter.saw,
        )
        try:
            for step in generation:
                if step.text:
                    pieces.append(step.text)
                    yield step.text
                # Of just so many tokens, however many there are by now: the engine decodes ahead.
                while meter.tokens > considering:
                    halfway.append(meter.first(considering))
                    considering += CONSIDERED_EVERY
                    doubted = doubted or confidence.hopeless(halfway[-1])
                if doubted and may_give_up:
                    break
        finally:
            generation.close()
    except BaseException:
        # After an error nothing is known of the cache for sure.
        sequence.close()
        raise
    sequences.give_back(sequence)
    given_up = doubted and may_give_up
    finish = generation.finish
    assert finish is not None, "a generation that was closed has a finish"
    if finish.reason == "deadline" and not finish.tokens:
        raise DeadlineExceeded("The deadline passed before the first token.")
    text, signals = "".join(pieces), meter.signals()
    parsed, fault = None, None
    if parse is not None and not given_up:
        try:
            parsed = parse(text, finish.reason)
        except StructureError as error:
            fault = error
    calls = ToolCalls()
    if ask.tools is not None and not given_up:
        calls = ask.tools.check(calls_in(text))
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
        given_up=given_up,
        doubted=doubted,
        parsed=None if ask.form is None else parsed,
        calls=calls,
        fault=fault,
        hidden_state=meter.hidden_state,
        halfway=tuple(halfway),
    )
