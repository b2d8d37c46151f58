"""The device's answer, with an eye on how sure it is."""

from __future__ import annotations

from collections.abc import Generator
from time import perf_counter
from typing import Any

from edgesdk.decode.options import Options
from edgesdk.engines.base import Sequence
from edgesdk.errors import DeadlineExceeded
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.trust.signals import SignalMeter
from edgesdk.receipt import receipt_of
from edgesdk.runtime import Runtime
from edgesdk.scheduling import Cancel

# Signals of an answer change slowly; asking at every token would cost more than it tells.
_EVERY = 8


def draft(
    runtime: Runtime,
    messages: list[dict[str, Any]],
    options: Options,
    confidence: Confidence,
    *,
    may_give_up: bool,
    cancel: Cancel | None = None,
    sequence: Sequence | None = None,
) -> Generator[str, None, LocalDraft]:
    """Yield the pieces of the answer; return what it was.

    Args:
        may_give_up: whether anyone else could answer instead.
        cancel: set it, from any thread, to end the answer.
        sequence: to answer on, the caller's own; what it holds of the prompt is not computed
            again. None for a new one.

    Raises:
        ContextOverflow, EmptyPrompt, TemplateError, EngineError: see `edgesdk.model.Model`.
        DeadlineExceeded: the deadline passed before the first token.
    """
    started = perf_counter()
    ids = runtime.encode(messages)
    meter = SignalMeter()
    held = runtime.engine.sequence() if sequence is None else sequence
    pieces: list[str] = []
    doubted = False
    try:
        generation = runtime.generate(
            held,
            ids,
            options,
            started=started,
            cancel=runtime.cancel_event() if cancel is None else cancel,
            watch=meter.saw,
        )
        try:
            for step in generation:
                if step.text:
                    pieces.append(step.text)
                    yield step.text
                if doubted or meter.tokens % _EVERY:
                    continue
                signals = meter.signals()
                doubted = signals is not None and confidence.hopeless(signals)
                if doubted and may_give_up:
                    break
        finally:
            generation.close()
    finally:
        if sequence is None:
            held.close()
    finish = generation.finish
    assert finish is not None, "a generation that was closed has a finish"
    if finish.reason == "deadline" and not finish.tokens:
        raise DeadlineExceeded("The deadline passed before the first token.")
    signals = meter.signals()
    return LocalDraft(
        "".join(pieces),
        receipt_of(finish, runtime.engine.info, load_seconds=runtime.load_seconds),
        signals,
        None if signals is None else confidence.of(signals),
        given_up=doubted and may_give_up,
        doubted=doubted,
    )
