"""Do several answers to one prompt say the same?

Where a model knows, its samples agree (Wang et al. 2022, "Self-Consistency", arXiv:2203.11171).
Answers that end in a result are compared by that; of others it is how many words they share that
counts, the lexical similarity of Lin et al. 2023 (arXiv:2305.19187).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

# How near to its end an answer has its result.
_END = 24
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
_CHOICE = re.compile(r"(?:^|[\s(*:])([A-E])[).\s*]*$")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")

Alike = Callable[[str, str], float]


class Choice(NamedTuple):
    """The answer that the others agree with most.

    Attributes:
        at: which one it is.
        likeness: the sum of what it has in common with the others, each between 0 and 1.
    """

    at: int
    likeness: float


def likeness(one: str, other: str) -> float:
    """How far two answers say the same, 0 to 1."""
    results = result_of(one), result_of(other)
    if None not in results:
        return float(results[0] == results[1])
    words = [set(_WORD.findall(text.casefold())) for text in (one, other)]
    either = words[0] | words[1]
    return len(words[0] & words[1]) / len(either) if either else 1.0


def result_of(answer: str) -> float | str | None:
    """The number, or the letter of a choice, that an answer ends in; None where it ends in words.

    A number counts as its value: "1,000" is "1000.0".
    """
    end = answer.strip()
    choice = _CHOICE.search(end[-_END:])
    if choice:
        return choice[1]
    numbers = list(_NUMBER.finditer(end))
    if not numbers or numbers[-1].end() < len(end) - _END:
        return None
    return float(numbers[-1][0].replace(",", ""))


def most_agreed(answers: Sequence[str], sureness: Sequence[float], alike: Alike) -> Choice:
    """The answer that has most in common with the others; of several such the surest.

    That is the majority's where answers agree or do not, and the one of the least expected loss
    where they do so in part (minimum Bayes risk, Kumar and Byrne 2004).
    """
    totals = [
        sum(alike(one, other) for j, other in enumerate(answers) if j != i)
        for i, one in enumerate(answers)
    ]
    best = max(range(len(answers)), key=lambda i: (round(totals[i], 9), sureness[i]))
    return Choice(best, totals[best])
