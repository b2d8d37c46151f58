"""Labels answers as right or wrong, and calibrates a threshold with them."""

from __future__ import annotations

import math
import re
import threading
import unicodedata
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeAlias

from edgesdk.errors import ContextOverflow, DeadlineExceeded, RequestError
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.confidence.signals import SIGNAL_NAMES, Signals
from edgesdk.hybrid.confidence.threshold import Calibration, calibrate
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.storage.journal import JournalEntry
from edgesdk.text.prompts import Prompt, as_messages

Progress: TypeAlias = Callable[[int, int | None], None]
DraftMaker: TypeAlias = Callable[[list[dict[str, Any]]], Generator[object, None, LocalDraft | None]]


@dataclass(frozen=True)
class Labels:
    """What is known of answers, in the order in which they were drawn.

    Attributes:
        confidences: of the answers that a threshold decides about, and
        right: whether each of them is.
        skipped: how many prompts had no such answer: half-way it looked hopeless, it has no
            token, the prompt does not fit, a gate turns it down, or the deadline was too short.
            They are never kept, whatever the threshold.
    """

    confidences: tuple[float, ...] = ()
    right: tuple[bool, ...] = ()
    skipped: int = 0


def label_answers(
    labelled: Iterable[tuple[Prompt, Check]],
    drafting: DraftMaker,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> Labels:
    """Let the device answer the prompts, and look whether it is right.

    Args:
        labelled: prompts, drawn as those to come will be, each with the expected answer (see
            `edgesdk.hybrid.confidence.labels.same_answer`) or what tells whether an answer is
            right.
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
            draft = _finished_draft(drafting(as_messages(prompt)), cancel)
        except (ContextOverflow, DeadlineExceeded):
            draft = None
        if draft is None and cancel is not None and cancel.is_set():
            raise RequestError(
                f"The calibration was cancelled after {done} prompts; nothing was changed."
            )
        if draft is not None and draft.confidence is not None and not draft.predicted_wrong:
            confidences.append(draft.confidence)
            right.append(passes(check, draft.text))
        done += 1
        if progress is not None:
            progress(done, total)
    return Labels(tuple(confidences), tuple(right), done - len(right))


def labels_in_journal(
    entries: Iterable[JournalEntry], confidence: Confidence, *, bundle: str
) -> Labels:
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
    skipped = 0
    for entry in entries:
        decision = entry.decision
        if entry.right is None or decision.route == "audit" or decision.bundle != bundle:
            continue
        signals = dict(decision.signals)
        agreement = signals.pop("agreement", None)
        signals.pop("answers", None)
        if decision.predicted_wrong or decision.rejected_by or set(signals) != set(SIGNAL_NAMES):
            skipped += 1
            continue
        alone = confidence.of(Signals(**signals))
        confidences.append(
            alone if agreement is None else confidence.with_agreement(alone, agreement)
        )
        right.append(entry.right)
    return Labels(tuple(confidences), tuple(right), skipped)


def calibrated(labels: Labels, *, alpha: float, delta: float) -> Calibration:
    """`edgesdk.hybrid.confidence.threshold.calibrate` on labels; `missing` counts prompts.

    Answers that are never kept say nothing about those that are, so they are left out.

    Raises:
        InvalidOption: alpha or delta is no probability.
    """
    found = calibrate(labels.confidences, labels.right, alpha=alpha, delta=delta)
    if found.missing is None or not labels.right:
        return found
    share = len(labels.right) / (len(labels.right) + labels.skipped)
    return replace(found, missing=math.ceil(found.missing / share))


def _finished_draft(
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


# The answer that is expected, or what tells whether an answer is right.
Check: TypeAlias = str | Callable[[str], bool]

_NUMBER = re.compile(r"(?<![\w.])[-+]?[0-9][0-9,]*(?:\.[0-9]+)?|(?<![\w.])[-+]?\.[0-9]+")
_EDGES = " \t\n.,;:!?\"'`*_()[]{}<>"
_MINUS = str.maketrans({"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"})


def same_answer(expected: str, found: str) -> bool:
    """Whether both texts are the same but for case, width, spaces and punctuation around them, or
    end with the same number.

    The second is made for exercises: "So she has 12 apples." is the answer "12". Where numbers
    stand in answers by chance, or right answers come in many words, an app needs a judge of its
    own.
    """
    if not (wanted := _plain(expected)):
        return False
    if wanted == _plain(found):
        return True
    number = last_number(expected)
    return number is not None and number == last_number(found)


def last_number(text: str) -> Decimal | None:
    """The value of the last number in `text`, with commas between thousands."""
    numbers = _NUMBER.findall(unicodedata.normalize("NFKC", text).translate(_MINUS))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _plain(text: str) -> str:
    """The words alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


def passes(check: Check, answer: str) -> bool:
    """Whether an answer is right, by the expected one or by what tells."""
    return same_answer(check, answer) if isinstance(check, str) else bool(check(answer))
