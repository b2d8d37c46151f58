"""From prompts whose answers are known, or a journal with labels, to a threshold with a promise."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from edgesdk.errors import ContextOverflow, DeadlineExceeded, RequestError
from edgesdk.hybrid.records.journal import Entry
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.trust.confidence import Confidence
from edgesdk.hybrid.trust.judging import Check, passes
from edgesdk.hybrid.trust.signals import NAMES, Signals
from edgesdk.hybrid.trust.threshold import Calibration, calibrate
from edgesdk.text.prompts import Prompt, messages_of

Progress: TypeAlias = Callable[[int, int | None], None]
Drafting: TypeAlias = Callable[[list[dict[str, Any]]], Generator[object, None, LocalDraft | None]]


@dataclass(frozen=True)
class Labels:
    """What is known of answers, in the order in which they were drawn.

    Attributes:
        confidences: of the answers that a threshold decides about, and
        right: whether each of them is.
        passed_over: how many prompts had no such answer: half-way it looked hopeless, it has no
            token, the prompt does not fit, a gate turns it down, or the deadline was too short.
            They are never kept, whatever the threshold.
    """

    confidences: tuple[float, ...] = ()
    right: tuple[bool, ...] = ()
    passed_over: int = 0


def answered(
    labelled: Iterable[tuple[Prompt, Check]],
    drafting: Drafting,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Labels:
    """Let the device answer the prompts, and look whether it is right.

    Args:
        labelled: prompts, drawn as those to come will be, each with the expected answer (see
            `edgesdk.hybrid.trust.judging.same_answer`) or what tells whether an answer is right.
        drafting: makes an answer as it will be made later, giving up half-way included; None
            where none would be made.
        progress: called after each prompt with how many are done and how many there are, None
            where that is not known.
        cancel: ends it when set, between two tokens.

    Raises:
        RequestError: it was cancelled, or a prompt is none.
        Exception: whatever a check raises.
    """
    total = len(labelled) if isinstance(labelled, list | tuple) else None
    confidences: list[float] = []
    right: list[bool] = []
    done = 0
    for prompt, check in labelled:
        try:
            draft = _draft(drafting(messages_of(prompt)), cancel)
        except (ContextOverflow, DeadlineExceeded):
            draft = None
        if draft is None and cancel is not None and cancel.is_set():
            raise RequestError(
                f"The calibration was cancelled after {done} prompts; nothing was changed."
            )
        if draft is not None and draft.confidence is not None and not draft.doubted:
            confidences.append(draft.confidence)
            right.append(passes(check, draft.text))
        done += 1
        if progress is not None:
            progress(done, total)
    return Labels(tuple(confidences), tuple(right), done - len(right))


def written_down(entries: Iterable[Entry], confidence: Confidence, *, bundle: str) -> Labels:
    """The labels of a journal. They must not have been chosen by what the answers were: a journal
    in which only complaints are labelled promises nothing.

    Args:
        entries: with `right` where somebody said whether the device's answer is; the others are
            left out, and so are audits, which only saw answers that were kept.
        confidence: computes the confidences anew, from the signals, and the agreement where the
            device answered several times.
        bundle: hash of the model; entries of others are left out.
    """
    confidences: list[float] = []
    right: list[bool] = []
    passed_over = 0
    for entry in entries:
        decision = entry.decision
        if entry.right is None or decision.route == "audit" or decision.bundle != bundle:
            continue
        signals = dict(decision.signals)
        agreement = signals.pop("agreement", None)
        signals.pop("answers", None)
        if decision.doubted or decision.gate or set(signals) != set(NAMES):
            passed_over += 1
            continue
        alone = confidence.of(Signals(**signals))
        confidences.append(
            alone if agreement is None else confidence.with_agreement(alone, agreement)
        )
        right.append(entry.right)
    return Labels(tuple(confidences), tuple(right), passed_over)


def calibrated(labels: Labels, *, alpha: float, delta: float) -> Calibration:
    """`edgesdk.hybrid.trust.threshold.calibrate` on labels; `missing` counts prompts.

    Answers that are never kept say nothing about those that are, so they are left out.

    Raises:
        InvalidOption: alpha or delta is no probability.
    """
    found = calibrate(labels.confidences, labels.right, alpha=alpha, delta=delta)
    if found.missing is None or not labels.right:
        return found
    share = len(labels.right) / (len(labels.right) + labels.passed_over)
    return replace(found, missing=math.ceil(found.missing / share))


def _draft(
    steps: Generator[object, None, LocalDraft | None], cancel: threading.Event | None
) -> LocalDraft | None:
    """The draft at its end; None where it was cancelled, or there is none."""
    try:
        while cancel is None or not cancel.is_set():
            next(steps)
    except StopIteration as end:
        found: LocalDraft | None = end.value
        return found
    finally:
        steps.close()
    return None
