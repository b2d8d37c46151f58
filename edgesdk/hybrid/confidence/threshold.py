"""Finds a threshold from labelled answers with a risk guarantee: few of the kept ones are wrong.

Learn then Test (Angelopoulos, Bates, Candès, Jordan, Lei 2021, arXiv:2110.01052) with fixed
sequence testing: thresholds are tested from the strictest to the loosest, and the first that fails
ends it. Given the scores, the wrong ones among the kept are binomial, so each test is exact.
"""

from __future__ import annotations

import math
import re
import threading
import unicodedata
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np

from edgesdk.errors import ContextOverflow, DeadlineExceeded, InvalidOption, RequestError
from edgesdk.hybrid.confidence.confidence import SIGNAL_NAMES, Confidence, Signals
from edgesdk.hybrid.confidence.linear_models import checked_lengths
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.storage.journal import JournalEntry
from edgesdk.hybrid.stream import Steps
from edgesdk.text.prompts import Prompt, as_messages

# Where the sequence begins, as a share of the labels: with fewer one unlucky error would end it,
# with more it could not promise for the few that a weak model is sure of. In simulations of 100
# labels 0.3 promised more often, and kept more, than 0.4, 0.5, or several starts that share delta.
_FIRST_SHARE = 0.3
_MAX_LABELS = 100_000


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what is guaranteed of it.

    Attributes:
        threshold: lowest confidence of answers that are kept; None where nothing can be
            guaranteed, so that nothing is kept.
        alpha: share of wrong answers among the kept that is not exceeded,
        delta: but for this probability, over the draw of the labels.
        labels: how many there were,
        kept: of which the threshold keeps so many,
        wrong: of which so many are wrong.
        missing: about how many more labels would allow a guarantee, where there is none now; None
            where none would help, or none are needed.
    """

    threshold: float | None
    alpha: float
    delta: float
    labels: int
    kept: int
    wrong: int
    missing: int | None

    def phrase(self) -> str:
        """Say it to people."""
        if self.threshold is not None:
            return (
                f"Answers of confidence {self.threshold:.3f} and more are kept:"
                f" {self.kept} of {self.labels}, of which {self.wrong} were wrong. With"
                f" {1 - self.delta:.0%} certainty at most {self.alpha:.0%} of those to come are."
            )
        start = f"{self.labels} labels do not show that at most {self.alpha:.0%} would be wrong"
        if self.missing is None:
            return f"{start}, and more would not: even the surest answers are wrong more often."
        return f"{start}; about {self.missing} more might."


def calibrate(
    confidences: Sequence[float], right: Sequence[bool], *, alpha: float = 0.2, delta: float = 0.05
) -> Calibration:
    """Find the loosest threshold for which the guarantee holds.

    Args:
        confidences: of answers drawn as those to come will be, none of which trained the
            confidence.
        right: whether each answer was.

    Raises:
        InvalidOption: alpha or delta is no probability, or the lengths differ.
    """
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise InvalidOption("alpha and delta must lie between 0 and 1.")
    scores, flags = checked_lengths(confidences, right)
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    wrong = np.cumsum(~flags[order])
    # A threshold keeps all answers of the same confidence or none.
    ends = [i + 1 for i in range(len(scores)) if i + 1 == len(scores) or scores[i + 1] < scores[i]]
    best = 0
    for kept in (end for end in ends if end >= _first_size(len(scores), alpha, delta)):
        if binomial_tail(int(wrong[kept - 1]), kept, alpha) > delta:
            break
        best = kept
    found = best > 0
    return Calibration(
        threshold=float(scores[best - 1]) if found else None,
        alpha=alpha,
        delta=delta,
        labels=len(scores),
        kept=best,
        wrong=int(wrong[best - 1]) if found else 0,
        missing=None if found else _missing_labels(ends, wrong.tolist(), alpha, delta),
    )


def binomial_tail(most: int, trials: int, probability: float) -> float:
    """Compute the probability of at most `most` successes in `trials`, exactly."""
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(probability)
        + (trials - k) * math.log1p(-probability)
        for k in range(most + 1)
    ]
    highest = max(logs)
    return min(1.0, math.exp(highest) * math.fsum(math.exp(one - highest) for one in logs))


def _first_size(labels: int, alpha: float, delta: float) -> float:
    """Return how many answers the first threshold of the sequence keeps.

    They are never fewer than pass the test where all of them are right.
    """
    return max(_FIRST_SHARE * labels, math.ceil(math.log(delta) / math.log1p(-alpha)))


def _missing_labels(ends: list[int], wrong: list[int], alpha: float, delta: float) -> int | None:
    """Estimate how many more labels the first threshold needs to pass, if they are like these."""
    labels = ends[-1] if ends else 0
    if labels == 0:
        return math.ceil(_first_size(0, alpha, delta) / _FIRST_SHARE)
    # Half an error more than there were: none among a few does not show that there will be none.
    rate = min((wrong[end - 1] + 0.5) / (end + 1) for end in ends if end >= _FIRST_SHARE * labels)
    total = labels
    while rate < alpha and total < _MAX_LABELS:
        total += max(total // 20, 1)
        size = math.ceil(_first_size(total, alpha, delta))
        if size <= total and binomial_tail(math.floor(rate * size), size, alpha) <= delta:
            return total - labels
    return None


Progress: TypeAlias = Callable[[int, int | None], None]
DraftMaker: TypeAlias = Callable[[list[dict[str, Any]]], Generator[object, None, LocalDraft | None]]


@dataclass(frozen=True)
class Labels:
    """Confidences of answers and whether they are right, in the order in which they were drawn.

    Attributes:
        confidences: of the answers that a threshold decides about, and
        right: whether each of them is.
        skipped: how many prompts had no such answer: it was predicted to be wrong, it is cut or
            has no token, the prompt does not fit, the router rejects it, or the deadline was too
            short. Such answers are never kept, whatever the threshold.
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
    """Have the device answer the prompts, and check the answers.

    Args:
        labelled, progress, cancel: see `edgesdk.hybrid.client.HybridClient.calibrate`, which raises
            the same.
        drafting: makes an answer as it will be made later; None where none would be made.
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
        if draft is not None and draft.confidence is not None and draft.decidable:
            confidences.append(draft.confidence)
            right.append(passes(check, draft.text))
        done += 1
        if progress is not None:
            progress(done, total)
    return Labels(tuple(confidences), tuple(right), done - len(right))


def labels_in_journal(
    entries: Iterable[JournalEntry], confidence: Confidence, *, bundle: str
) -> Labels:
    """Read the labels of a journal.

    They must not have been chosen by what the answers were: a journal in which only complaints are
    labelled guarantees nothing.

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
        never_kept = decision.predicted_wrong or not decision.local_complete
        if never_kept or decision.rejected_by or set(signals) != set(SIGNAL_NAMES):
            skipped += 1
            continue
        alone = confidence.of(Signals(**signals))
        confidences.append(
            alone if agreement is None else confidence.with_agreement(alone, agreement)
        )
        right.append(entry.right)
    return Labels(tuple(confidences), tuple(right), skipped)


def calibrate_labels(labels: Labels, *, alpha: float, delta: float) -> Calibration:
    """Calibrate a threshold with labels; `missing` counts prompts.

    Answers that are never kept say nothing about those that are, so they are left out.
    """
    calibration = calibrate(labels.confidences, labels.right, alpha=alpha, delta=delta)
    if calibration.missing is None or not labels.right:
        return calibration
    share = len(labels.right) / (len(labels.right) + labels.skipped)
    return replace(calibration, missing=math.ceil(calibration.missing / share))


def _finished_draft(
    drafting: Generator[object, None, LocalDraft | None], cancel: threading.Event | None
) -> LocalDraft | None:
    """Run a draft to its end; None where it was cancelled, or there is none."""
    with Steps(drafting) as steps:
        for _ in steps:
            if cancel is not None and cancel.is_set():
                return None
        return steps.result


# The answer that is expected, or what tells whether an answer is right.
Check: TypeAlias = str | Callable[[str], bool]

_NUMBER = re.compile(r"(?<![\w.])[-+]?[0-9][0-9,]*(?:\.[0-9]+)?|(?<![\w.])[-+]?\.[0-9]+")
_EDGES = " \t\n.,;:!?\"'`*_()[]{}<>"
_MINUS = str.maketrans({"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"})


def same_answer(expected: str, answer: str) -> bool:
    """Whether two texts say the same.

    They do if they are equal but for case, width, spaces and punctuation around them, or if they
    end with the same number.

    The second is made for exercises: "So she has 12 apples." is the answer "12". Where numbers
    stand in answers by chance, or right answers come in many words, an app needs a judge of its
    own.
    """
    if not (plain := _plain(expected)):
        return False
    if plain == _plain(answer):
        return True
    number = last_number(expected)
    return number is not None and number == last_number(answer)


def last_number(text: str) -> Decimal | None:
    """Read the last number in `text`; it may have commas between thousands."""
    numbers = _NUMBER.findall(unicodedata.normalize("NFKC", text).translate(_MINUS))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _plain(text: str) -> str:
    """Normalize case, width, spaces and the punctuation at both ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_EDGES)


def passes(check: Check, answer: str) -> bool:
    """Whether an answer is right: the same as the expected one, or accepted by the check."""
    return same_answer(check, answer) if isinstance(check, str) else bool(check(answer))
