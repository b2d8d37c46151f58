"""More tries on the device before its answer is given up: settings, and how they are spent."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from edgesdk.decode.options import Options
from edgesdk.errors import InvalidOption
from edgesdk.hybrid.cloud.clock import Deadline
from edgesdk.hybrid.effort.agreement import Alike, likeness, most_agreed
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.hybrid.trust.confidence import Confidence

# Where nobody limits a try, it may become so much longer than the draft was.
_LONGER, _LONGER_BY = 2, 64

# Answers once more, with options of its own and the last words of the prompt, and yields meanwhile;
# None where the answer did not come to its end.
Try = Callable[[Options, str | None], Generator[None, None, LocalDraft | None]]


@dataclass(frozen=True)
class Effort:
    """Answer again, by chance each time, and keep what most answers say.

    It is spent on drafts whose confidence is below the threshold, but not hopeless, and ends as
    soon as further answers would hardly change what becomes of the draft. A client makes none
    unless it is told to: each try takes about as long as the draft did, shows nothing meanwhile,
    and takes battery; whether it saves calls depends on model and task, and is to be measured.

    The threshold here is the one that the app set, or that is kept for the model. One that a
    calibration chooses must not change how answers are made: the calibration makes its own with
    the same effort, and then decides about them.

    Attributes:
        tries: most further answers.
        temperature: that they are sampled at, unless the call's own is higher.
        least: confidence of a draft that is worth it; None for the confidence's `give_up_below`.
        instruction: goes after the prompt of each try, such as "Think step by step; end with the
            result alone."; None for nothing. With more `max_tokens` it makes a longer budget for
            thinking.
        max_tokens: of each try; None for the call's, else twice what the draft took, and some.
        share: of the time that the deadline leaves, above 0 and at most 1; the rest is the cloud's.
        alone: also where the cloud may not be asked, so that the answer is the device's anyway.
        alike: how far two answers say the same, 0 to 1.

    Raises:
        InvalidOption: a number is out of its range.
    """

    tries: int = 3
    temperature: float = 0.8
    least: float | None = None
    instruction: str | None = None
    max_tokens: int | None = None
    share: float = 0.5
    alone: bool = False
    alike: Alike = likeness

    def __post_init__(self) -> None:
        if self.tries < 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise InvalidOption("tries and max_tokens must be at least 1.")
        if not self.temperature > 0:
            raise InvalidOption(
                f"temperature must be above 0, not {self.temperature}.",
                hint="At 0 all answers are the same.",
            )
        if not 0 < self.share <= 1:
            raise InvalidOption(f"share must be above 0 and at most 1, not {self.share}.")

    def worth(self, draft: LocalDraft, confidence: Confidence, *, others: bool) -> bool:
        """Whether to spend it on `draft`.

        Args:
            others: whether anyone else could answer.
        """
        least = confidence.give_up_below if self.least is None else self.least
        return (
            (others or self.alone)
            and not draft.doubted
            and draft.receipt.finish_reason in ("stop", "length")
            and draft.confidence is not None
            and least <= draft.confidence < confidence.threshold
        )


def insist(
    first: LocalDraft,
    again: Try,
    options: Options,
    confidence: Confidence,
    effort: Effort,
    deadline: Deadline,
) -> Generator[None, None, LocalDraft]:
    """Return the answer that most tries agree on, with a confidence that knows of it.

    Args:
        first: the draft, which counts as one of the answers.
        again: makes one more; None is the last.
        options: of the call.
        deadline: of the call.
    """
    answers = [first]
    time = Deadline(None if deadline.seconds is None else effort.share * deadline.seconds)
    slowest = first.receipt.decode_seconds
    verdict = first
    while len(answers) <= effort.tries and slowest < time.remaining:
        began = perf_counter()
        mine = _options(first, options, effort, len(answers), time)
        answer = yield from again(mine, effort.instruction)
        slowest = max(slowest, perf_counter() - began)
        if answer is None:
            break
        answers.append(answer)
        verdict, settled = _weighed(answers, confidence, effort)
        if settled:
            break
    return verdict


def _options(
    first: LocalDraft, options: Options, effort: Effort, number: int, time: Deadline
) -> Options:
    length = _LONGER * first.receipt.output_tokens + _LONGER_BY
    changes: dict[str, Any] = {
        "temperature": max(options.temperature, effort.temperature),
        # The same prompt gets the same answer where the call without effort would give it.
        "seed": (options.seed or 0) + number if options.repeatable else None,
        "max_tokens": effort.max_tokens or options.max_tokens or length,
        # An instant at least: nothing left is no option's value, and ends the try at once.
        "deadline": None if time.seconds is None else max(time.seconds, 1e-3),
    }
    return replace(options, **changes)


def _weighed(
    answers: list[LocalDraft], confidence: Confidence, effort: Effort
) -> tuple[LocalDraft, bool]:
    """The answer of the most agreement, and whether further tries could not change its fate."""
    sureness = [answer.confidence or 0.0 for answer in answers]
    choice = most_agreed([answer.text for answer in answers], sureness, effort.alike)
    best, own = answers[choice.at], sureness[choice.at]
    others, left = len(answers) - 1, effort.tries + 1 - len(answers)

    agreement = choice.likeness / others
    worst = choice.likeness / (others + left)
    top = (choice.likeness + left) / (others + left)
    kept_anyway = confidence.with_agreement(own, worst) >= confidence.threshold
    lost_anyway = confidence.with_agreement(max(sureness), top) < confidence.threshold
    weighed = replace(
        best,
        confidence=confidence.with_agreement(own, agreement),
        agreement=agreement,
        answers=len(answers),
    )
    return weighed, kept_anyway or lost_anyway
