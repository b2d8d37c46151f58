"""Do several answers to one prompt say the same?

Where a model knows, its samples agree (Wang et al. 2022, "Self-Consistency", arXiv:2203.11171).
Answers that end in a result are compared by that; of others it is how many words they share that
counts, the lexical similarity of Lin et al. 2023 (arXiv:2305.19187).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

from edgesdk.errors import InvalidOption
from edgesdk.hybrid.confidence.confidence import Confidence
from edgesdk.hybrid.reply import LocalDraft
from edgesdk.options import Options
from edgesdk.system.cancellation import CancellationToken

# How near to its end an answer has its result.
_END = 24
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
_LETTER = re.compile(r"(?:^|[\s(*:])([A-E])[).\s*]*$")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")

Similarity = Callable[[str, str], float]


class Consensus(NamedTuple):
    """The answer that agrees most with the others.

    Attributes:
        at: which one it is.
        agreement: the sum of what it has in common with the others, each between 0 and 1.
    """

    at: int
    agreement: float


def answer_similarity(one: str, other: str) -> float:
    """Compute how far two answers say the same, 0 to 1."""
    results = result_of(one), result_of(other)
    if None not in results:
        return float(results[0] == results[1])
    words = [set(_WORD.findall(text.casefold())) for text in (one, other)]
    either = words[0] | words[1]
    return len(words[0] & words[1]) / len(either) if either else 1.0


def result_of(answer: str) -> float | str | None:
    """Return the number, or the letter of a choice, that an answer ends in; None if it ends in
    words.

    A number counts as its value: "1,000" is "1000.0".
    """
    end = answer.strip()
    choice = _LETTER.search(end[-_END:])
    if choice:
        return choice[1]
    numbers = list(_NUMBER.finditer(end))
    if not numbers or numbers[-1].end() < len(end) - _END:
        return None
    return float(numbers[-1][0].replace(",", ""))


def consensus_of(
    answers: Sequence[str], confidences: Sequence[float], similarity: Similarity
) -> Consensus:
    """Choose the answer that agrees most with the others; of several such the surest.

    That is the majority's where answers agree or do not, and the one of the least expected loss
    where they do so in part (minimum Bayes risk, Kumar and Byrne 2004).
    """
    totals = [
        sum(similarity(one, other) for j, other in enumerate(answers) if j != i)
        for i, one in enumerate(answers)
    ]
    best = max(range(len(answers)), key=lambda i: (round(totals[i], 9), round(confidences[i], 3)))
    return Consensus(best, totals[best])


# Where nobody limits a try, it may become so much longer than the draft was.
_LENGTH_FACTOR, _LENGTH_MARGIN = 2, 64

# Answers once more, with options of its own and the last words of the prompt, and yields meanwhile;
# None where the answer did not come to its end.
Sampler = Callable[[Options, str | None], Generator[None, None, LocalDraft | None]]


@dataclass(frozen=True)
class SelfConsistency:
    """Settings: sample more answers on the device, and keep what most of them say.

    It is spent on drafts whose confidence is below the threshold, but not hopeless, and ends as
    soon as further answers would hardly change what becomes of the draft. A client makes none
    unless it is told to: each try takes about as long as the draft did, shows nothing meanwhile,
    and takes battery; whether it saves calls depends on model and task, and is to be measured.

    The threshold here is the one that the app set, or that is kept for the model. One that a
    calibration chooses must not change how answers are made: the calibration makes its own with
    the same settings, and then decides about them.

    Attributes:
        tries: most further answers.
        temperature: that they are sampled at, unless the call's own is higher.
        min_confidence: confidence of a draft that is worth it; None for the confidence's
            `abort_below`.
        instruction: goes after the prompt of each try, such as "Think step by step; end with the
            result alone."; None for nothing. With more `max_tokens` it makes a longer budget for
            thinking.
        max_tokens: of each try; None for the call's, else twice what the draft took, and some.
        deadline_share: of the time that the deadline leaves, above 0 and at most 1; the rest is the
            cloud's.
        without_cloud: also where the cloud may not be asked, so that the answer is the device's
            anyway.
        similarity: how far two answers say the same, 0 to 1.

    Raises:
        InvalidOption: a number is out of its range.
    """

    tries: int = 3
    temperature: float = 0.8
    min_confidence: float | None = None
    instruction: str | None = None
    max_tokens: int | None = None
    deadline_share: float = 0.5
    without_cloud: bool = False
    similarity: Similarity = answer_similarity

    def __post_init__(self) -> None:
        if self.tries < 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise InvalidOption("tries and max_tokens must be at least 1.")
        if not self.temperature > 0:
            raise InvalidOption(
                f"temperature must be above 0, not {self.temperature}.",
                hint="At 0 all answers are the same.",
            )
        if not 0 < self.deadline_share <= 1:
            raise InvalidOption(
                f"deadline_share must be above 0 and at most 1, not {self.deadline_share}."
            )

    def applies_to(self, draft: LocalDraft, confidence: Confidence, *, cloud_allowed: bool) -> bool:
        """Whether to sample more answers than `draft`.

        Args:
            cloud_allowed: whether anyone else could answer.
        """
        min_confidence = (
            confidence.abort_below if self.min_confidence is None else self.min_confidence
        )
        return (
            (cloud_allowed or self.without_cloud)
            and draft.decidable
            and draft.confidence is not None
            and min_confidence <= draft.confidence < confidence.threshold
        )


def sample_until_agreed(
    first: LocalDraft,
    again: Sampler,
    options: Options,
    confidence: Confidence,
    self_consistency: SelfConsistency,
    deadline: CancellationToken,
) -> Generator[None, None, LocalDraft]:
    """Sample answers until they settle which one is kept; return it, with its confidence updated.

    Args:
        first: the draft, which counts as one of the answers.
        again: makes one more; None is the last.
        options, deadline: of the call.
    """
    answers = [first]
    time = CancellationToken(
        None if deadline.timeout is None else self_consistency.deadline_share * deadline.timeout
    )
    slowest = first.receipt.decode_seconds
    verdict = first
    while len(answers) <= self_consistency.tries and slowest < time.remaining:
        began = perf_counter()
        own = _options(first, options, self_consistency, len(answers), time)
        answer = yield from again(own, self_consistency.instruction)
        slowest = max(slowest, perf_counter() - began)
        if answer is None:
            break
        answers.append(answer)
        verdict, settled = _weigh(answers, confidence, self_consistency)
        if settled:
            break
    return verdict


def _options(
    first: LocalDraft,
    options: Options,
    self_consistency: SelfConsistency,
    number: int,
    time: CancellationToken,
) -> Options:
    length = _LENGTH_FACTOR * first.receipt.output_tokens + _LENGTH_MARGIN
    return replace(
        options,
        temperature=max(options.temperature, self_consistency.temperature),
        # A repeatable request stays repeatable.
        seed=(options.seed or 0) + number if options.repeatable else None,
        max_tokens=self_consistency.max_tokens or options.max_tokens or length,
        # An instant at least: nothing left is no option's value, and ends the try at once.
        deadline=None if time.timeout is None else max(time.timeout, 1e-3),
    )


def _weigh(
    answers: list[LocalDraft], confidence: Confidence, self_consistency: SelfConsistency
) -> tuple[LocalDraft, bool]:
    """Choose the consensus; also return whether further samples could not change its fate.

    An answer that is cut agrees with no other, and is not chosen.
    """
    whole = [answer for answer in answers if answer.complete]
    confidences = [answer.confidence or 0.0 for answer in whole]
    choice = consensus_of(
        [answer.text for answer in whole], confidences, self_consistency.similarity
    )
    best, own = whole[choice.at], confidences[choice.at]
    others, left = len(answers) - 1, self_consistency.tries + 1 - len(answers)

    agreement = choice.agreement / others
    worst = choice.agreement / (others + left)
    top = (choice.agreement + left) / (others + left)
    kept_anyway = confidence.with_agreement(own, worst) >= confidence.threshold
    lost_anyway = confidence.with_agreement(max(confidences), top) < confidence.threshold
    weighed = replace(
        best,
        confidence=confidence.with_agreement(own, agreement),
        agreement=agreement,
        answers=len(answers),
    )
    return weighed, kept_anyway or lost_anyway
