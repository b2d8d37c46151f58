"""Write whole numbers from 0 to 9,999 in words of English, Chinese, German and Spanish."""

from __future__ import annotations

from edgesdk_export.confidence.task import Language
from edgesdk_export.confidence.wordings import word_list


def in_words(number: int, language: Language) -> str:
    """Write a number from 0 to 9,999 in words, as in "three hundred and five"."""
    write = {"en": _english, "zh": _chinese, "de": _german, "es": _spanish}[language]
    return write(number)


def _english(number: int) -> str:
    small, tens = word_list("numbers", "en"), word_list("tens", "en")
    if number < 20:
        return small[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return tens[ten - 2] + (f"-{small[one]}" if one else "")
    unit, word = (100, "hundred") if number < 1000 else (1000, "thousand")
    count, rest = divmod(number, unit)
    joint = " and " if rest < 100 else " "
    return f"{small[count]} {word}" + (f"{joint}{_english(rest)}" if rest else "")


def _german(number: int) -> str:
    small, tens = word_list("numbers", "de"), word_list("tens", "de")
    if number < 20:
        return small[number]
    if number < 100:
        ten, one = divmod(number, 10)
        before = "ein" if one == 1 else small[one]
        return (f"{before}und" if one else "") + tens[ten - 2]
    unit, word = (100, "hundert") if number < 1000 else (1000, "tausend")
    count, rest = divmod(number, unit)
    before = "ein" if count == 1 else small[count]
    return before + word + (_german(rest) if rest else "")


def _spanish(number: int) -> str:
    small, tens = word_list("numbers", "es"), word_list("tens", "es")
    if number < 30:
        return small[number]
    if number == 100:
        return "cien"
    if number < 100:
        ten, one = divmod(number, 10)
        return tens[ten - 3] + (f" y {small[one]}" if one else "")
    if number < 1000:
        count, rest = divmod(number, 100)
        before = word_list("hundreds", "es")[count - 1]
    else:
        count, rest = divmod(number, 1000)
        before = "mil" if count == 1 else f"{small[count]} mil"
    return before + (f" {_spanish(rest)}" if rest else "")


def _chinese(number: int) -> str:
    digits = word_list("numbers", "zh")
    if number < 20:
        return (
            digits[number] if number < 10 else "十" + (digits[number - 10] if number > 10 else "")
        )
    written, gap = "", False
    for unit, word in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        # One zero stands for all that are between two digits.
        if digit:
            written += (digits[0] if gap and written else "") + digits[digit] + word
        gap = not digit
    return written
