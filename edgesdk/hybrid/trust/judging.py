"""Whether two answers say the same, where the app does not say how to tell."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import TypeAlias

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
